// The tokenizer's face to Python: minigpt_ext._C.Bpe, train_bpe and split. Nothing in this folder knows of torch.
#pragma once

#include <pybind11/pybind11.h>

namespace minigpt {

void bind_tokenizer(pybind11::module_& m);

}  // namespace minigpt
