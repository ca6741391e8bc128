// The decode engine: its matrices in blocks of their own, and whole engines of some shapes.
#include "decoder/decoder.h"

#include "decoder/matmul.h"
#include "memory_check.h"

namespace memory_check {
namespace {

using namespace minigpt::decoder;

constexpr std::pair<WeightFormat, const char*> kFormats[] = {{WeightFormat::fp32, "fp32"},
                                                             {WeightFormat::bf16, "bf16"},
                                                             {WeightFormat::int8, "int8"},
                                                             {WeightFormat::int4, "int4"}};

// Of exactly so many bytes, aligned as the engine's are.
std::unique_ptr<std::byte, Release> lines(int64_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes)) fail("no memory");
  return std::unique_ptr<std::byte, Release>(static_cast<std::byte*>(memory));
}

void multiply_once(WeightFormat format, const char* name, int64_t N, int64_t K, int64_t M, int threads) {
  say("packed_matrix", name, "N", N, "K", K, "M", M, "threads", threads);
  const Block w = Block::filled(DType::f32, N * K, 1), x = Block::filled(DType::f32, M * K, 2),
              bias = Block::filled(DType::f32, N, 3), y(DType::f32, M * N), row(DType::f32, K);
  const auto numbers = [](const Block& block) { return static_cast<float*>(static_cast<void*>(block)); };
  const auto data = lines(packed_bytes(format, N, K)), input = lines(input_bytes(format, M, K));
  const PackedMatrix matrix{format, N, K, data.get()};
  pack_rows(format, numbers(w), N, K, 0, N, data.get());
  for (int64_t n = 0; n < N; ++n) {
    unpack_row(matrix, n, numbers(row));
    row.check("a row");
  }
  prepare_input(format, numbers(x), K, K, 0, M, input.get());
  for (int thread = 0; thread < threads; ++thread)
    multiply(matrix, input.get(), M, threads == 1 ? nullptr : numbers(bias), numbers(y), N,
             share_begin(matrix, thread, threads), share_begin(matrix, thread + 1, threads));
  y.check("y");
}

struct Model {
  const char* name;
  Shape shape;
};

const Model kModels[] = {
    {"gpt2",
     {.V = 65,
      .C = 33,
      .n_layer = 2,
      .H = 3,
      .H_kv = 3,
      .D = 11,
      .F = 130,
      .norm = Norm::layer_norm,
      .eps = 1e-5,
      .activation = Activation::gelu_tanh,
      .positions = Positions::added,
      .rope_half = 0,
      .qk_norm = false,
      .norm_bias = true,
      .qkv_bias = true,
      .attention_bias = true,
      .mlp_bias = true,
      .tied_head = true,
      .attention_softcap = 0,
      .logit_softcap = 0,
      .windows = {0, 0}}},
    {"modern",
     {.V = 70,
      .C = 24,
      .n_layer = 2,
      .H = 4,
      .H_kv = 2,
      .D = 9,
      .F = 37,
      .norm = Norm::rms_norm,
      .eps = 1e-5,
      .activation = Activation::swiglu,
      .positions = Positions::rope,
      .rope_half = 3,
      .qk_norm = true,
      .norm_bias = false,
      .qkv_bias = false,
      .attention_bias = false,
      .mlp_bias = false,
      .tied_head = false,
      .attention_softcap = 20,
      .logit_softcap = 30,
      .windows = {5, 0}}},
    {"alibi",
     {.V = 1,
      .C = 1,
      .n_layer = 1,
      .H = 1,
      .H_kv = 1,
      .D = 1,
      .F = 1,
      .norm = Norm::rms_norm,
      .eps = 1e-5,
      .activation = Activation::relu_squared,
      .positions = Positions::alibi,
      .rope_half = 0,
      .qk_norm = false,
      .norm_bias = false,
      .qkv_bias = true,
      .attention_bias = false,
      .mlp_bias = true,
      .tied_head = false,
      .attention_softcap = 0,
      .logit_softcap = 0,
      .windows = {0}}},
};

constexpr int64_t kContext = 400;

void load(Decoder& engine) {
  const Shape& s = engine.shape();
  uint32_t seed = 0;
  const auto put = [&](const std::string& name, int64_t rows, int64_t columns) {
    const Block values = Block::filled(DType::f32, rows * columns, ++seed);
    engine.load(name, static_cast<float*>(static_cast<void*>(values)), rows, columns);
  };
  const auto linear = [&](const std::string& name, int64_t rows, int64_t columns, bool bias) {
    put(name + ".weight", rows, columns);
    if (bias) put(name + ".bias", 1, rows);
  };
  const auto norm = [&](const std::string& name) {
    put(name + ".weight", 1, s.C);
    if (s.norm_bias) put(name + ".bias", 1, s.C);
  };
  put("wte.weight", s.V, s.C);
  for (int64_t i = 0; i < s.n_layer; ++i) {
    const std::string layer = "h." + std::to_string(i) + ".";
    norm(layer + "ln_1");
    linear(layer + "attn.c_attn", s.qkv_width(), s.C, s.qkv_bias);
    linear(layer + "attn.c_proj", s.C, s.H * s.D, s.attention_bias);
    for (const char* each : {"attn.q_norm.weight", "attn.k_norm.weight"})
      if (s.qk_norm) put(layer + each, 1, s.D);
    norm(layer + "ln_2");
    linear(layer + "mlp.c_fc", s.activation == Activation::swiglu ? 2 * s.F : s.F, s.C, s.mlp_bias);
    linear(layer + "mlp.c_proj", s.C, s.F, s.mlp_bias);
  }
  norm("ln_f");
  if (!s.tied_head) put("lm_head.weight", s.V, s.C);
  if (s.positions == Positions::added) put("added", kContext, s.C);
  for (const char* table : {"cos", "sin"})
    if (s.positions == Positions::rope) put(table, kContext, s.rope_half);
  if (s.positions == Positions::alibi) put("alibi_slopes", 1, s.H);
  for (const std::string& name : engine.weights().missing()) fail(name + " was not loaded");
}

// A prompt, its continuation, then tokens one by one, over a cache of just so many blocks.
void generate(const Model& model, WeightFormat format, const char* format_name, DType cache_type, bool int8,
              int threads, int64_t B, bool in_order, const std::vector<int64_t>& reads) {
  const Shape& s = model.shape;
  constexpr int64_t block_size = 16;
  Decoder engine(s, format, threads);
  load(engine);
  int64_t length = 0;
  for (int64_t T : reads) length += T;
  const int64_t max_blocks = (length + block_size - 1) / block_size, n_blocks = B * max_blocks;
  std::vector<int32_t> table(n_blocks);
  for (int64_t i = 0; i < n_blocks; ++i) table[i] = int32_t(in_order ? i : n_blocks - 1 - i);
  const auto block_table = copy_of(table);
  std::vector<CacheBlock> memory;
  Cache cache{.dtype = cache_type,
              .k = {},
              .v = {},
              .k_scales = {},
              .v_scales = {},
              .n_blocks = n_blocks,
              .block_size = block_size,
              .B = B,
              .max_blocks = max_blocks,
              .block_table = block_table.get()};
  for (int64_t i = 0; i < 2 * s.n_layer; ++i) {
    const CacheBlock& block = memory.emplace_back(cache_type, int8, n_blocks * block_size * s.H_kv, s.D);
    (i % 2 ? cache.v : cache.k).push_back(block.values());
    if (int8) (i % 2 ? cache.v_scales : cache.k_scales).push_back(block.scales());
  }
  int64_t start = 0;
  for (int64_t T : reads) {
    const bool every = T > 1 && start > 0;
    say("decoder", model.name, format_name, "cache", int8 ? "int8" : name_of(cache_type), "threads", threads, "B", B,
        "blocks in order", in_order, "T", T, "start", start, "every logit", every);
    std::vector<int64_t> tokens(B * T);
    for (int64_t i = 0; i < B * T; ++i) tokens[i] = (start + i) * 7 % s.V;
    const auto ids = copy_of(tokens);
    const int64_t rows = every ? T : 1;
    const Block logits(DType::f32, B * rows * s.V);
    engine.read({.ids = ids.get(), .id_stride = T, .first = 0, .B = B, .T = T, .start = start}, cache,
                {.out = static_cast<float*>(static_cast<void*>(logits)), .stride = rows * s.V, .every = every});
    logits.check("logits");
    start += T;
  }
}

}  // namespace

void check_packed_matrix() {
  for (const auto& [format, name] : kFormats)
    for (const auto& [N, K] : {std::pair{1, 1}, {33, 31}, {65, 70}, {64, 257}, {100, 1000}})
      for (int M : {1, 2, 3, 8, 9, 17})
        for (int threads : {1, 3}) multiply_once(format, name, N, K, M, threads);
}

void check_decoder() {
  for (const auto& [format, name] : kFormats)
    for (const Model& model : kModels)
      for (const auto& [cache, int8] : {CacheType{DType::f32, false}, {DType::bf16, false}, {DType::f32, true}}) {
        generate(model, format, name, cache, int8, 1, 1, true, {1, 1, 16, 5, 1});
        generate(model, format, name, cache, int8, 2, 3, false, {17, 3, 1, 1});
        generate(model, format, name, cache, int8, 3, 1, true, {70, 66, 1, 200, 1});
      }
}

}  // namespace memory_check
