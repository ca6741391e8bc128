// The module that Python imports: the ops, as ops.h lists them, and what no tensor is in.
#include "ops.h"

#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "common/simd.h"
#include "decoder/bindings.h"
#include "decoder/kernel_bindings.h"
#include "tokenizer/tokenizer.h"

STABLE_TORCH_LIBRARY(minigpt, m) { minigpt::define_ops(m); }

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

// What no tensor is in: facts about the build and the CPU, for `minigpt doctor`.
PYBIND11_MODULE(_C, m) {
  m.def("build_info", [] {
    pybind11::dict info;
    info["compiler"] =
#ifdef __clang__
        "clang " __clang_version__;
#else
        "g++ " __VERSION__;
#endif
    info["torch_target"] = TEXT(TORCH_TARGET_VERSION);
    info["pybind11"] = TEXT(PYBIND11_VERSION_MAJOR) "." TEXT(PYBIND11_VERSION_MINOR);
#ifdef MINIGPT_CUDA
    info["cuda_toolkit"] = TEXT(MINIGPT_CUDA_TOOLKIT);
    info["cuda_archs"] = TEXT(MINIGPT_CUDA_ARCHS);
#else
    info["cuda_toolkit"] = pybind11::none();
    info["cuda_archs"] = pybind11::none();
#endif
    return info;
  });
  m.def("simd_level", &minigpt::simd::level_name, "The instruction set that the CPU kernels use.");
  minigpt::bind_decoder(m);
  minigpt::bind_tokenizer(m);
  minigpt::bind_decoder_kernels(m);
}
