// What every <room>_op.cpp needs of torch: tensors checked, kernels' parameters filled, the device's kernel called.
// Only the LibTorch stable ABI is used, so that one build serves every torch from 2.11 on.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_stream.h"
#include "dtype.h"
#include "simd.h"

#ifdef MINIGPT_CUDA_EMULATOR
#include "../emulator/memory.h"
#endif

#ifdef MINIGPT_CUDA
// Lives in libtorch_cuda, which a CPU build of torch does not have: weak, so that the module loads there too.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace minigpt {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The message alone reaches Python (as a RuntimeError); it starts with the op's name and says what came and what may come.
template <class... Args>
void check(bool condition, const Args&... message) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::runtime_error(text.str());
}

// A tensor's shape in a message, put into words only where the message is.
struct ShapeText {
  const Tensor& tensor;
};

inline ShapeText shape_of(const Tensor& t) { return {t}; }

inline std::ostream& operator<<(std::ostream& text, const ShapeText& shape) {
  text << '(';
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) text << (i ? ", " : "") << shape.tensor.size(i);
  return text << ')';
}

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another type";
  }
}

inline DType dtype_of(const Tensor& t, const char* op, const char* argument) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::BFloat16:
      return DType::bf16;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::Double:
      return DType::f64;
    default:
      check(false, op, ": ", argument, " must be float32, bfloat16, float16 or float64, got ",
            name_of(t.scalar_type()));
  }
  return DType::f32;  // not reached
}

inline ScalarType accumulate_type(DType dtype) { return dtype == DType::f64 ? ScalarType::Double : ScalarType::Float; }

inline void check_type(const Tensor& t, ScalarType type, const char* op, const char* argument) {
  check(t.scalar_type() == type, op, ": ", argument, " must be ", name_of(type), ", got ", name_of(t.scalar_type()));
}

inline void check_same_device(const Tensor& t, const Tensor& first, const char* op, const char* argument) {
  if (t.is_cpu() && first.is_cpu()) return;
  const auto device = [](const Tensor& x) {
    return x.is_cuda() ? "cuda:" + std::to_string(x.get_device_index()) : x.is_cpu() ? "cpu" : "another device";
  };
  check(device(t) == device(first), op, ": ", argument, " is on ", device(t), ", the first argument on ", device(first),
        "; all must be on one device");
}

inline void check_shape(const Tensor& t, std::vector<int64_t> shape, const char* op, const char* argument,
                        const char* letters) {
  bool same = t.dim() == int64_t(shape.size());
  for (int64_t i = 0; same && i < t.dim(); ++i) same = t.size(i) == shape[i];
  if (same) return;
  std::ostringstream wanted;
  for (size_t i = 0; i < shape.size(); ++i) wanted << (i ? ", " : "") << shape[i];
  check(false, op, ": ", argument, " must be ", letters, " = (", wanted.str(), "), got ", shape_of(t));
}

inline void check_last_stride(const Tensor& t, const char* op, const char* argument) {
  check(t.size(t.dim() - 1) <= 1 || t.numel() == 0 || t.stride(t.dim() - 1) == 1, op, ": ", argument,
        " must be contiguous in its last dimension, got stride ", t.stride(t.dim() - 1), "; call .contiguous()");
}

// Contiguous and uninitialised, on the device of `like`. By torch's C function: through the dispatcher, which looks an op up
// by its name, five of these took as long as a short call's kernels.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i] > 1 ? shape[i] : 1) strides[i] = stride;
  const auto number = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(shape.size()), shape.data(), strides.data(), number,
                                                         device, like.get_device_index(), &made));
  return Tensor(made);
}

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// The memory of a tensor as its kernel sees it, to read or to write. runs_cuda: whether that kernel is the CUDA one.
#ifdef MINIGPT_CUDA_EMULATOR
inline bool runs_cuda(const Tensor&) { return true; }

inline emulator::memory::Layout layout_of(const Tensor& t) {
  return {{t.sizes().begin(), t.sizes().end()}, {t.strides().begin(), t.strides().end()}, size_t(t.element_size())};
}
inline const void* input(const Tensor& t) {
  return emulator::memory::copy_in(const_cast<void*>(t.const_data_ptr()), layout_of(t), false);
}
inline void* output(Tensor t) { return emulator::memory::copy_in(t.mutable_data_ptr(), layout_of(t), true); }
#else
inline bool runs_cuda(const Tensor& t) { return t.is_cuda(); }
inline const void* input(const Tensor& t) { return t.const_data_ptr(); }
inline void* output(const Tensor& t) { return t.mutable_data_ptr(); }
#endif
inline const void* input(const std::optional<Tensor>& t) { return t ? input(*t) : nullptr; }
inline void* output(const std::optional<Tensor>& t) { return t ? output(*t) : nullptr; }

// Whether the values of index tensors are checked before a launch: on the CPU always; on a GPU, where that waits for the
// device, only with MINIGPT_CHECK=1, and kernels there never use what is out of range.
inline bool values_are_checked(const Tensor& t) {
  const char* const wanted = std::getenv("MINIGPT_CHECK");
  return !runs_cuda(t) || (wanted && std::string(wanted) == "1");
}

inline Tensor on_cpu(const Tensor& t) {
  return t.is_cpu() ? t : torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU));
}

#ifdef MINIGPT_CUDA
inline CudaStream current_stream(const Tensor& t) {
  void* stream = nullptr;
  check(aoti_torch_get_current_cuda_stream && aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == 0,
        "this torch has no current CUDA stream");
  return static_cast<CudaStream>(stream);
}
#endif

}  // namespace minigpt

// RUN(gelu_forward, x, params) calls gelu_forward_cpu(params), or gelu_forward_cuda(params, stream) where x is on a GPU or
// emulated. The instruction set is chosen first, on this thread: a wrong MINIGPT_SIMD would lose its message in a worker.
// REGISTER(gelu_forward) makes the function of that name the op's kernel for every device this module was built for.
#if defined(MINIGPT_CUDA_EMULATOR)
#define RUN(kernel, tensor, params)       \
  do {                                    \
    minigpt::emulator::memory::Call call; \
    kernel##_cuda(params, nullptr);       \
    call.succeeded();                     \
  } while (0)
#define REGISTER_IN(name, op) \
  STABLE_TORCH_LIBRARY_IMPL(name, CPU, library) { library.impl(#op, TORCH_BOX(&minigpt::op)); }
#define REGISTER(op) REGISTER_IN(MINIGPT_EMULATOR_NAMESPACE, op)
#elif defined(MINIGPT_CUDA)
#define RUN(kernel, tensor, params)                                                     \
  do {                                                                                  \
    if ((tensor).is_cuda()) {                                                           \
      const torch::stable::accelerator::DeviceGuard guard((tensor).get_device_index()); \
      kernel##_cuda(params, current_stream(tensor));                                    \
    } else {                                                                            \
      minigpt::simd::level();                                                           \
      kernel##_cpu(params);                                                             \
    }                                                                                   \
  } while (0)
#define REGISTER(op)                                                                               \
  STABLE_TORCH_LIBRARY_IMPL(minigpt, CPU, library) { library.impl(#op, TORCH_BOX(&minigpt::op)); } \
  STABLE_TORCH_LIBRARY_IMPL(minigpt, CUDA, library) { library.impl(#op, TORCH_BOX(&minigpt::op)); }
#else
#define RUN(kernel, tensor, params) (minigpt::simd::level(), kernel##_cpu(params))
#define REGISTER(op) \
  STABLE_TORCH_LIBRARY_IMPL(minigpt, CPU, library) { library.impl(#op, TORCH_BOX(&minigpt::op)); }
#endif
