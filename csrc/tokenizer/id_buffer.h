// Ids one behind another. A vector that grows without writing zeros first: room() is what to write at, then grow().
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace minigpt::tokenizer {

using Id = int32_t;

class IdBuffer {
 public:
  size_t size() const { return size_; }
  Id* data() { return ids_.get(); }
  const Id* data() const { return ids_.get(); }

  // Where the next ids go, of which `count` have room there.
  Id* room(size_t count) {
    if (capacity_ - size_ < count) reserve(size_ + count);
    return ids_.get() + size_;
  }
  void grow(size_t count) { size_ += count; }
  void shrink_to(size_t size) { size_ = size; }
  void push_back(Id id) {
    *room(1) = id;
    grow(1);
  }

 private:
  struct Free {
    void operator()(Id* ids) const { std::free(ids); }
  };

  void reserve(size_t least) {
    const size_t capacity = least + least / 2 + 64;
    auto* ids = static_cast<Id*>(std::realloc(ids_.get(), capacity * sizeof(Id)));
    if (ids == nullptr) throw std::bad_alloc();
    static_cast<void>(ids_.release());
    ids_.reset(ids);
    capacity_ = capacity;
  }

  std::unique_ptr<Id, Free> ids_;
  size_t size_ = 0, capacity_ = 0;
};

}  // namespace minigpt::tokenizer
