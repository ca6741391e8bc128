"""Which shape of an op is meant, and how much work it is; the expected numbers are worked out by hand."""

import pytest

from minigpt_ext.profiling.cases import case_of
from minigpt_ext.profiling.job import Job
from minigpt_ext.profiling.work import Work, work_of_call, work_of_case

pytestmark = pytest.mark.usefixtures("benchmarks")


@pytest.mark.parametrize(
    "op, shape",
    [
        ("attention", "B1 H12 T1024 D64 fwd+bwd"),
        ("layer_norm", "residual 4096x768 forward+backward"),
        ("gelu", "erf 4096x1536 forward+backward"),
        ("kv_append", "B16 T256 H12 D64 after 0"),
        ("decode_attention", "B1 S8192 H12 D64"),
        ("rope", "B4 T1024 H8 D128 forward+backward"),
        ("rms_norm", "4096x768 forward+backward"),
        ("swiglu", "4096x(2x1024) forward+backward"),
        ("relu_squared", "4096x1536 forward+backward"),
        ("cross_entropy", "512x50257 forward+backward"),
        ("dropout", "residual 4096x768 forward+backward"),
    ],
)
def test_the_heaviest_shape_stands_where_none_is_asked_for(op: str, shape: str) -> None:
    assert case_of(Job(op)).shape == shape


@pytest.mark.parametrize("asked", ["tanh 4096x1536 forward", "erf 4096x1536 forward+backward"])
def test_a_whole_name_is_that_shape(asked: str) -> None:
    assert case_of(Job("gelu", shape=asked)).shape == asked


def test_a_part_of_a_name_will_do_where_it_is_one_shape_s() -> None:
    assert case_of(Job("layer_norm", shape="8192x")).shape == "8192x128 forward+backward"


def test_arguments_make_any_shape() -> None:
    case = case_of(Job("attention", shape="B=2, H=3, T=5, D=8, backward=no, dropout_p=0.25"))
    assert case.shape == "B2 H3 T5 D8 fwd dropout 0.25"
    assert case.work == 2 * 2 * (2 * 3) * 8 * 15  # two products, 2 FLOPs; B H; D; 15 of the 25 pairs


@pytest.mark.parametrize(
    "shape, said",
    [
        ("7x7", "there is no such shape: erf 4096x1536 forward; "),
        (
            "tanh",
            "several shapes are like that: tanh 4096x1536 forward; tanh 4096x1536 forward[+]backward; bias tanh",
        ),
        ("rows=3", "columns, approximate, backward is missing; expected rows=int,columns=int,approximate=str"),
        ("rows=3,cols=4", "there is no 'cols'; expected rows=int"),
        ("rows=3,columns=four", "columns must be int, not 'four'"),
        ("rows=-3", "rows must be 0 or more, not -3"),
        ("backward=1", "backward must be yes or no, not '1'"),
        ("rows=3,columns=4,approximate=cubic,backward=yes", "the benchmark knows no 'cubic'"),
    ],
)
def test_a_shape_that_is_none(shape: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        case_of(Job("gelu", shape=shape))


def test_work_by_pass() -> None:
    gelu = work_of_case(case_of(Job("gelu", dtype="bfloat16", shape="rows=10,columns=6,approximate=tanh,backward=yes")))
    assert gelu == {"forward": Work("copy", 2 * 60 * 2), "backward": Work("copy", 3 * 60 * 2)}
    layer_norm = work_of_case(case_of(Job("layer_norm", shape="rows=10,C=6,backward=no")))
    assert layer_norm == {"forward": Work("copy", 2 * 60 * 4)}
    attention = work_of_case(case_of(Job("attention", shape="B=1,H=1,T=2,D=4,backward=yes")))
    assert attention == {"forward": Work("gemm", 2 * 2 * 4 * 3), "backward": Work("gemm", 5 * 2 * 4 * 3)}


@pytest.mark.parametrize(
    "name, shapes, expected",
    [
        ("minigpt::gelu_forward", [[2, 5, 6], []], Work("copy", 2 * 60 * 4)),
        ("minigpt::gelu_backward", [[2, 5, 6], [2, 5, 6], []], Work("copy", 3 * 60 * 4)),
        ("minigpt::layer_norm_backward", [[2, 5, 6], [2, 5, 6], [6], [10], [10], []], Work("copy", 3 * 60 * 4)),
        ("minigpt::attention_forward", [[2, 3, 4, 8]] * 3, Work("gemm", 2 * 2 * 2 * 4 * 8 * 6)),
        ("minigpt::rope", [[2, 5, 3, 4], [9, 2], [9, 2], [], []], Work("copy", 2 * 120 * 4)),
        ("minigpt::rms_norm_forward", [[2, 5, 6], [6], []], Work("copy", 2 * 60 * 4)),
        ("minigpt::rms_norm_backward", [[2, 5, 6], [2, 5, 6], [6], [10]], Work("copy", 3 * 60 * 4)),
        ("minigpt::swiglu_forward", [[2, 5, 6]], Work("copy", 3 * 30 * 4)),
        ("minigpt::swiglu_backward", [[2, 5, 3], [2, 5, 6]], Work("copy", 5 * 30 * 4)),
        ("minigpt::relu_squared_backward", [[2, 5, 6], [2, 5, 6]], Work("copy", 3 * 60 * 4)),
        ("minigpt::cross_entropy_forward", [[2, 5, 6], [2, 5], [], []], Work("copy", 2 * 60 * 4)),
        ("minigpt::dropout", [[2, 5, 6], [], [], [1], []], Work("copy", 2 * 60 * 4)),
        ("minigpt::kv_append", [[9, 64, 4, 8]] * 2 + [[2, 3, 4, 8]] * 2, Work("copy", 2 * 2 * 2 * 3 * 4 * 8 * 4)),
        ("minigpt::decode_attention", [[2, 1, 4, 8], [9, 64, 4, 8], [9, 64, 4, 8]], None),
        ("aten::add", [[2, 3], [2, 3]], None),
    ],
)
def test_work_of_a_call_in_a_model(name: str, shapes: list, expected: Work | None) -> None:
    assert work_of_call(name, shapes, Job("train")) == expected


def test_bytes_are_not_known_under_autocast_and_flops_are() -> None:
    job = Job("train", dtype="bfloat16")
    assert work_of_call("minigpt::gelu_forward", [[2, 3]], job) is None
    assert work_of_call("minigpt::attention_forward", [[1, 1, 1, 4]] * 3, job) == Work("gemm", 16)
    generation = Job("generate", dtype="bfloat16")
    assert work_of_call("minigpt::gelu_forward", [[2, 3]], generation) == Work("copy", 24)
