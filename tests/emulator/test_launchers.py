"""Which launchers a source has, and what may be handed to them."""

import re

import pytest
import torch

import minigpt_ext as mg
from minigpt_ext.emulator.launchers import Launcher, launchers_of

SOURCE = """#include <cstdint>
#include "more.h"
#define MAKE(name) extern "C" __attribute__((visibility("default"))) void name##_it(const float* x, int n) { (void)n; }
// extern "C" void commented(int* x) {}
extern "C" void declared(int* x);
extern "C" __attribute__((noinline, visibility("default"))) void one(const float *x,
                                                                      int64_t rows) { if (rows) { one(x, 0); } }
MAKE(make)
extern "C" {
void two() { for (;;) { one(nullptr, 1); } }
int three(void) { return 3; }
}
void no_launcher(int* x) {}
"""


def test_of_a_source(tmp_path):
    (tmp_path / "kernels.cu").write_text(SOURCE)
    (tmp_path / "more.h").write_text('extern "C" void included(unsigned n) {}\n')
    found = launchers_of([tmp_path / "kernels.cu"])
    assert list(map(str, found.values())) == [
        "included(unsigned n)", "one(const float *x, int64_t rows)", "make_it(const float* x, int n)", "two()",
        "three()",
    ]  # fmt: skip


def test_a_source_that_cannot_be_read_by_the_compiler(tmp_path):
    (tmp_path / "kernels.cu").write_text('#include "nowhere.h"\n')
    with pytest.raises(mg.emulator.BuildError, match="preprocessing kernels.cu failed:(.|\n)*nowhere.h"):
        launchers_of([tmp_path / "kernels.cu"])


@pytest.mark.parametrize("parameter", ["float scale", "const double eps"])
def test_parameters_that_are_not_integers(parameter):
    with pytest.raises(
        TypeError, match=f"'{parameter}' cannot be handed over; pass numbers .* as an element of a tensor"
    ):
        Launcher("f", ("float* x", parameter)).check([torch.zeros(1), 1])


def test_more_parameters_than_can_be_handed_over():
    with pytest.raises(TypeError, match="a launcher has at most 12 parameters"):
        Launcher("f", ("int64_t n",) * 13).check([1] * 13)


@pytest.mark.parametrize(
    "parameter, least, most",
    [
        ("int n", -(2**31), 2**31 - 1),
        ("const int32_t n", -(2**31), 2**31 - 1),
        ("unsigned n", 0, 2**32 - 1),
        ("unsigned int n", 0, 2**32 - 1),
        ("uint32_t n", 0, 2**32 - 1),
        ("int64_t n", -(2**63), 2**63 - 1),
        ("long int n", -(2**63), 2**63 - 1),
    ],
)
def test_integers_that_fit(parameter, least, most):
    launcher = Launcher("f", (parameter,))
    launcher.check([least])
    launcher.check([most])
    launcher.check([True])
    for value in (least - 1, most + 1):
        with pytest.raises(OverflowError, match=re.escape("f: argument 0 must fit the") + f".*got {value}"):
            launcher.check([value])
