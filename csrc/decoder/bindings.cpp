#include "bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "decoder.h"

namespace py = pybind11;

namespace minigpt {
namespace {

using namespace decoder;

template <class T>
T named(const std::string& name, std::initializer_list<std::pair<const char*, T>> choices) {
  for (const auto& [each, value] : choices)
    if (name == each) return value;
  throw py::value_error(name + " is not known to the decoder");
}

Shape shape_of(const py::dict& config) {
  const auto number = [&](const char* name) { return config[name].cast<int64_t>(); };
  const auto real = [&](const char* name) { return config[name].cast<double>(); };
  const auto flag = [&](const char* name) { return config[name].cast<bool>(); };
  const auto text = [&](const char* name) { return config[name].cast<std::string>(); };
  const std::string positions = text("positions");
  return {.V = number("vocab_size"),
          .C = number("n_embd"),
          .n_layer = number("n_layer"),
          .H = number("n_head"),
          .H_kv = number("n_kv_head"),
          .D = number("head_dim"),
          .F = number("mlp_width"),
          .norm = named<Norm>(text("norm"), {{"layer_norm", Norm::layer_norm}, {"rms_norm", Norm::rms_norm}}),
          .eps = real("norm_epsilon"),
          .activation = named<Activation>(text("activation"), {{"gelu_tanh", Activation::gelu_tanh},
                                                               {"gelu", Activation::gelu},
                                                               {"relu_squared", Activation::relu_squared},
                                                               {"swiglu", Activation::swiglu}}),
          .positions = named<Positions>(positions, {{"none", Positions::none},
                                                    {"learned", Positions::added},
                                                    {"sinusoidal", Positions::added},
                                                    {"rope", Positions::rope},
                                                    {"alibi", Positions::alibi}}),
          .rope_half = positions == "rope" ? number("rope_dim") / 2 : 0,
          .qk_norm = flag("qk_norm"),
          .norm_bias = flag("norm_bias"),
          .qkv_bias = flag("qkv_bias"),
          .attention_bias = flag("attention_bias"),
          .mlp_bias = flag("mlp_bias"),
          .tied_head = flag("tied_head"),
          .attention_softcap = real("attention_softcap"),
          .logit_softcap = real("logit_softcap"),
          .windows = config["windows"].cast<std::vector<int64_t>>()};
}

std::unique_ptr<Decoder> make_decoder(const py::dict& config, const std::string& weights, int threads) {
  const Shape shape = shape_of(config);
  const auto format = named<WeightFormat>(weights, {{"fp32", WeightFormat::fp32},
                                                    {"bf16", WeightFormat::bf16},
                                                    {"int8", WeightFormat::int8},
                                                    {"int4", WeightFormat::int4}});
  const py::gil_scoped_release released;
  return std::make_unique<Decoder>(shape, format, threads);
}

using Floats = py::array_t<float, py::array::c_style>;

void load(Decoder& self, const std::string& name, const Floats& values) {
  if (values.ndim() < 1 || values.ndim() > 2) throw py::value_error(name + " must have one or two dimensions");
  const int64_t rows = values.ndim() == 2 ? values.shape(0) : 1, columns = values.shape(values.ndim() - 1);
  const float* data = values.data();
  const py::gil_scoped_release released;
  const std::lock_guard lock(self.mutex());
  self.load(name, data, rows, columns);
}

using Addresses = std::vector<uintptr_t>;

// The tensors of a KVCache, by their addresses. The caller keeps them alive, and has checked their shapes; scales come with
// int8 alone.
Cache cache_of(const std::string& dtype, const Addresses& k, const Addresses& v, const Addresses& k_scales,
               const Addresses& v_scales, uintptr_t block_table, int64_t B, int64_t max_blocks, int64_t block_size,
               int64_t n_blocks) {
  Cache cache{.dtype = named<DType>(dtype, {{"fp32", DType::f32}, {"bf16", DType::bf16}, {"int8", DType::f32}}),
              .n_blocks = n_blocks,
              .block_size = block_size,
              .B = B,
              .max_blocks = max_blocks,
              .block_table = reinterpret_cast<const int32_t*>(block_table)};
  for (const uintptr_t address : k) cache.k.push_back(reinterpret_cast<void*>(address));
  for (const uintptr_t address : v) cache.v.push_back(reinterpret_cast<void*>(address));
  for (const uintptr_t address : k_scales) cache.k_scales.push_back(reinterpret_cast<float*>(address));
  for (const uintptr_t address : v_scales) cache.v_scales.push_back(reinterpret_cast<float*>(address));
  return cache;
}

// Reads ids (B, T), in chunks that fit the engine's buffers: all of a group of sequences, a run of tokens at a time. Between
// chunks Ctrl-C is heard; then nothing counts as read.
void read(Decoder& self, const py::array_t<int64_t, py::array::c_style>& ids, const Cache& cache, int64_t start,
          const std::optional<Floats>& logits, bool every) {
  const int64_t B = ids.shape(0), T = ids.shape(1), V = self.shape().V;
  const int64_t group = std::min(B, Decoder::max_rows), run = std::max<int64_t>(1, Decoder::max_rows / group);
  const int64_t* const first_id = ids.data();
  float* const out = logits ? const_cast<float*>(logits->data()) : nullptr;
  for (int64_t b = 0; b < B; b += group)
    for (int64_t t = 0; t < T; t += run) {
      const Chunk chunk{first_id + b * T + t, T, b, std::min(group, B - b), std::min(run, T - t), start + t};
      const bool last = t + run >= T;
      const Logits wanted =
          every ? Logits{out + (b * T + t) * V, T * V, true} : Logits{last && out ? out + b * V : nullptr, V, false};
      {
        const py::gil_scoped_release released;
        const std::lock_guard lock(self.mutex());
        self.read(chunk, cache, wanted);
      }
      if (!(last && b + group >= B) && PyErr_CheckSignals()) throw py::error_already_set();
    }
}

}  // namespace

void bind_decoder(py::module_& m) {
  using namespace py::literals;
  py::class_<Cache>(m, "DecoderCache", "A KVCache's memory, as the decode engine sees it.")
      .def(py::init(&cache_of), "dtype"_a, "k"_a, "v"_a, "k_scales"_a, "v_scales"_a, "block_table"_a, "batch_size"_a,
           "max_blocks"_a, "cache_block"_a, "n_blocks"_a);
  py::class_<Decoder>(m, "Decoder", "The decode engine; minigpt_ext.decoder is its face.")
      .def(py::init(&make_decoder), "config"_a, "weights"_a, "threads"_a)
      .def("load", &load, "name"_a, "values"_a.noconvert(), "Packs or copies a parameter or a table.")
      .def("missing", [](const Decoder& self) { return self.weights().missing(); })
      .def("read", &read, "ids"_a.noconvert(), "cache"_a, "start"_a, "logits"_a.noconvert() = py::none(),
           "every"_a = false, "Reads tokens into the cache; writes the last ones' logits, or those of every one.")
      .def_property_readonly("threads", &Decoder::threads)
      .def_property_readonly("weight_bytes", [](const Decoder& self) { return self.weights().bytes(); })
      .def_property_readonly("buffer_bytes", &Decoder::buffer_bytes);
}

}  // namespace minigpt
