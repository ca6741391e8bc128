#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "encoder.h"
#include "text.h"
#include "tokenizer.h"
#include "trainer.h"

namespace py = pybind11;

namespace minigpt {

namespace {

using namespace tokenizer;

// The UTF-8 of a str, which lives as long as it. Throws ValueError for a lone surrogate, which has none.
std::string_view utf8(const py::str& text, const std::string& name = "text") {
  Py_ssize_t size;
  if (const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size)) return {data, static_cast<size_t>(size)};
  if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
  PyErr_Clear();
  for (Py_ssize_t i = 0;; ++i) {
    const Py_UCS4 code = PyUnicode_ReadChar(text.ptr(), i);
    if (code < 0xD800 || code >= 0xE000) continue;
    char hex[8];
    std::snprintf(hex, sizeof hex, "U+%04X", static_cast<unsigned>(code));
    throw py::value_error(name + "[" + std::to_string(i) + "] is " + hex +
                          ", a lone surrogate, which UTF-8 has no bytes for");
  }
}

template <typename Where>
Id checked_id(int64_t id, Where where) {
  if (id == static_cast<Id>(id)) return static_cast<Id>(id);
  throw py::value_error(where() + std::to_string(id) + " is no id; ids have 31 bits");
}

std::unique_ptr<Encoder> make_encoder(const std::vector<std::optional<py::bytes>>& tokens,
                                      const std::vector<std::pair<int64_t, int64_t>>& merges,
                                      const std::string& pattern, const std::map<std::string, int64_t>& specials,
                                      bool ignore_merges, const std::string& alphabet, const std::string& metaspace) {
  std::vector<std::optional<std::string>> bytes(tokens.size());
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i]) bytes[i] = static_cast<std::string>(*tokens[i]);
  }
  std::vector<std::pair<Id, Id>> pairs;
  for (const auto& [left, right] : merges) {
    const auto where = [&] { return "merges[" + std::to_string(pairs.size()) + "]: "; };
    pairs.emplace_back(checked_id(left, where), checked_id(right, where));
  }
  std::vector<std::pair<std::string, Id>> names;
  for (const auto& [name, id] : specials) {
    names.emplace_back(name, checked_id(id, [&] { return "specials: " + quote(name) + ": "; }));
  }
  const Options options{pattern_named(pattern), ignore_merges, metaspace_named(metaspace)};
  const Alphabet letters = alphabet_named(alphabet);
  const py::gil_scoped_release released;
  return std::make_unique<Encoder>(Vocabulary(std::move(bytes), pairs, letters), std::move(names), options);
}

py::array_t<Id> as_array(IdBuffer&& ids) {
  auto* kept = new IdBuffer(std::move(ids));
  const py::capsule owner(kept, [](void* p) { delete static_cast<IdBuffer*>(p); });
  return py::array_t<Id>(kept->size(), kept->data(), owner);
}

Specials::Allowed allowed_of(const Specials& specials, const py::object& allowed) {
  if (py::isinstance<py::bool_>(allowed)) return allowed.cast<bool>() ? specials.all() : specials.none();
  if (py::isinstance<py::str>(allowed) || !py::isinstance<py::iterable>(allowed)) {
    throw py::type_error("allowed must be a bool or names of special tokens, got " +
                         py::repr(allowed).cast<std::string>());
  }
  std::vector<std::string> names;
  for (const py::handle& name : allowed) names.push_back(name.cast<std::string>());
  return specials.only(names);
}

py::array_t<Id> encode(const Encoder& encoder, const py::str& text, const py::object& allowed) {
  const Specials::Allowed which = allowed_of(encoder.specials(), allowed);
  const std::string_view bytes = utf8(text);
  IdBuffer ids;
  {
    const py::gil_scoped_release released;
    ids = encoder.encode(bytes, which);
  }
  return as_array(std::move(ids));
}

py::bytes decode(const Encoder& encoder, const py::object& sequence) {
  const auto ids = py::array::ensure(sequence);
  if (!ids) throw py::type_error("ids must be a sequence of integers");
  if (ids.ndim() != 1) throw py::value_error("ids must have one dimension, got " + std::to_string(ids.ndim()));
  if (ids.size() > 0 && ids.dtype().kind() != 'i' && ids.dtype().kind() != 'u') {
    throw py::type_error("ids must be integers, got an array of " + py::str(ids.dtype()).cast<std::string>());
  }
  const py::array_t<int64_t, py::array::c_style | py::array::forcecast> numbers(ids);
  std::string text;
  {
    const py::gil_scoped_release released;
    text = encoder.decode({numbers.data(), static_cast<size_t>(numbers.size())});
  }
  return py::bytes(text);
}

py::tuple train_bpe(const std::variant<py::str, std::vector<py::str>>& texts, int64_t vocab_size,
                    const std::string& pattern, int n_threads, int64_t min_frequency) {
  if (n_threads < 1) throw py::value_error("n_threads must be positive, got " + std::to_string(n_threads));
  if (min_frequency < 0) {
    throw py::value_error("min_frequency must not be negative, got " + std::to_string(min_frequency));
  }
  std::vector<std::string_view> views;
  if (const auto* text = std::get_if<py::str>(&texts)) {
    views.push_back(utf8(*text));
  } else {
    for (const py::str& each : std::get<std::vector<py::str>>(texts)) {
      views.push_back(utf8(each, "texts[" + std::to_string(views.size()) + "]"));
    }
  }
  const Pattern cut = pattern_named(pattern);
  Trained trained;
  {
    const py::gil_scoped_release released;
    trained = train(views, static_cast<size_t>(std::max<int64_t>(vocab_size, 0)), cut, n_threads, min_frequency);
  }
  py::list tokens;
  for (const std::string& token : trained.tokens) tokens.append(py::bytes(token));
  return py::make_tuple(tokens, trained.merges);
}

py::list split(const py::str& text, const std::string& pattern) {
  py::list pieces;
  const std::string_view bytes = utf8(text);
  const auto* begin = reinterpret_cast<const Byte*>(bytes.data());
  for_each_piece(pattern_named(pattern), begin, begin + bytes.size(), [&](const Byte* from, const Byte* to) {
    pieces.append(py::str(reinterpret_cast<const char*>(from), to - from));
  });
  return pieces;
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  using namespace py::literals;
  py::class_<Encoder>(m, "Bpe", "A BPE tokenizer: tokens, merges and a pre-tokeniser's pattern.")
      .def(py::init(&make_encoder), "tokens"_a, "merges"_a, "pattern"_a, py::kw_only(), "specials"_a = py::dict(),
           "ignore_merges"_a = false, "alphabet"_a = "bytes", "metaspace"_a = "none")
      .def("encode", &encode, "text"_a, "allowed"_a = true,
           "The ids of a text, int32. allowed: whether special tokens in the text are taken as such, or which.")
      .def("decode", &decode, "ids"_a, "The bytes that ids stand for.");
  m.def("train_bpe", &train_bpe, "texts"_a, "vocab_size"_a, "pattern"_a, "n_threads"_a = 2, "min_frequency"_a = 0,
        "(tokens, merges) of a byte-level BPE vocabulary, as the library `tokenizers` trains it.");
  m.def("split", &split, "text"_a, "pattern"_a, "The pieces that the pattern cuts a text into.");
}

}  // namespace minigpt
