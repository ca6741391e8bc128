#include "kernel_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

#include "matmul.h"
#include "memory.h"
#include "thread_pool.h"

namespace py = pybind11;

namespace minigpt {
namespace {

using namespace decoder;
using Array = py::array_t<float, py::array::c_style | py::array::forcecast>;

WeightFormat format_named(const std::string& name) {
  const std::pair<const char*, WeightFormat> formats[] = {{"fp32", WeightFormat::fp32},
                                                          {"bf16", WeightFormat::bf16},
                                                          {"int8", WeightFormat::int8},
                                                          {"int4", WeightFormat::int4}};
  for (const auto& [known, format] : formats)
    if (name == known) return format;
  throw py::value_error("format must be fp32, bf16, int8 or int4, got " + name);
}

void check_matrix(const char* name, const Array& a, int64_t columns) {
  if (a.ndim() != 2 || (columns >= 0 && a.shape(1) != columns) || a.shape(0) < 1 || a.shape(1) < 1)
    throw py::value_error(std::string(name) + " must be a matrix" +
                          (columns >= 0 ? " of " + std::to_string(columns) + " columns" : "") + ", neither side 0");
}

class Matrix {
 public:
  Matrix(const std::string& format, const Array& w) {
    check_matrix("w", w, -1);
    const int64_t N = w.shape(0), K = w.shape(1);
    matrix_ = {format_named(format), N, K, nullptr};
    data_ = allocate(nbytes());
    matrix_.data = data_.get();
    if (!pack_rows(matrix_.format, w.data(), N, K, 0, N, data_.get()))
      throw py::value_error("w holds inf or NaN, which " + format + " has no numbers for");
  }

  int64_t nbytes() const { return packed_bytes(matrix_.format, matrix_.N, matrix_.K); }

  Array unpack() const {
    Array w({matrix_.N, matrix_.K});
    for (int64_t n = 0; n < matrix_.N; ++n) unpack_row(matrix_, n, w.mutable_data(n, 0));
    return w;
  }

  Array multiply(const Array& x, const std::optional<Array>& bias, int threads) const {
    check_matrix("x", x, matrix_.K);
    if (bias && (bias->ndim() != 1 || bias->shape(0) != matrix_.N))
      throw py::value_error("bias must have " + std::to_string(matrix_.N) + " elements");
    const int64_t M = x.shape(0);
    Array y({M, matrix_.N});
    const Memory input = allocate(input_bytes(matrix_.format, M, matrix_.K));
    ThreadPool pool(threads);
    float* out = y.mutable_data();
    const float* b = bias ? bias->data() : nullptr;
    const py::gil_scoped_release released;
    pool.run([&](int t) {
      prepare_input(matrix_.format, x.data(), matrix_.K, matrix_.K, M * t / threads, M * (t + 1) / threads,
                    input.get());
      pool.barrier();
      decoder::multiply(matrix_, input.get(), M, b, out, matrix_.N, share_begin(matrix_, t, threads),
                        share_begin(matrix_, t + 1, threads));
    });
    return y;
  }

 private:
  PackedMatrix matrix_;
  Memory data_;
};

// `runs` times a sum that every thread adds to, between `barriers` barriers each: how many of the additions a thread
// missed that should have seen them all. 0 where the pool does its work.
int64_t missed(ThreadPool& pool, int64_t runs, int64_t barriers) {
  struct alignas(64) Count {
    int64_t value = 0;
  };
  std::vector<Count> counts(pool.threads());
  std::atomic<int64_t> misses{0};
  const py::gil_scoped_release released;
  for (int64_t run = 0; run < runs; ++run) {
    pool.run([&](int thread) {
      for (int64_t i = 0; i < barriers; ++i) {
        ++counts[thread].value;
        pool.barrier();
        for (const Count& count : counts) misses += count.value != run * (barriers + 1) + i + 1;
        pool.barrier();
      }
      ++counts[thread].value;
    });
    for (const Count& count : counts) misses += count.value != (run + 1) * (barriers + 1);
  }
  return misses;
}

}  // namespace

void bind_decoder_kernels(py::module_& parent) {
  using namespace py::literals;
  py::module_ m = parent.def_submodule("decoder_kernels", "The decode engine's parts, for tests and measurements.");
  py::class_<Matrix>(m, "PackedMatrix", "Weights (N, K) packed as fp32, bf16, int8 or int4.")
      .def(py::init<const std::string&, const Array&>(), "format"_a, "w"_a)
      .def_property_readonly("nbytes", &Matrix::nbytes)
      .def("unpack", &Matrix::unpack, "The (N, K) numbers that the packed weights stand for.")
      .def("multiply", &Matrix::multiply, "x"_a, "bias"_a = py::none(), "threads"_a = 1,
           "x (M, K) W^T + bias: (M, N).");
  py::class_<ThreadPool>(m, "ThreadPool")
      .def(py::init<int>(), "threads"_a)
      .def("missed", &missed, "runs"_a, "barriers"_a);
}

}  // namespace minigpt
