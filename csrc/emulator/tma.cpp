// TMA: boxes of 2-D tensors, brought and stored late.
#include <algorithm>

#include "hopper_block.h"

namespace minigpt::emulator {
namespace {

struct Box {
  Box(const TensorMap& map, const void* shared, int column, int row, const char* what, Where where)
      : map(map),
        offset(offset_in_shared(shared)),
        row_bytes(map.box_cols * map.element_bytes),
        column(column),
        row(row) {
    const uint32_t alignment = map.swizzle == Swizzle::none ? 128u : 8u * unsigned(row_bytes);
    if (offset % alignment)
      fail(std::string(what) + ": the box in shared memory lies " + std::to_string(offset % alignment) +
               " bytes past a multiple of " + std::to_string(alignment),
           where);
    if (offset + bytes() > SharedMemory::kCapacity) fail(std::string(what) + ": the box leaves shared memory", where);
  }

  size_t bytes() const { return size_t(map.box_rows) * size_t(row_bytes); }

  // f(the part of row r that lies in the tensor, where in the box's row it begins, its bytes)
  template <class F>
  void for_each_row_inside(const F& f) const {
    const int64_t first = std::max<int64_t>(column, 0), behind = std::min<int64_t>(column + map.box_cols, map.cols);
    for (int r = 0; r < map.box_rows; ++r) {
      const int64_t y = int64_t(row) + r;
      if (y < 0 || y >= map.rows || first >= behind) continue;
      f(r, const_cast<char*>(map.base) + y * map.row_bytes + first * map.element_bytes,
        size_t((first - column) * map.element_bytes), size_t((behind - first) * map.element_bytes));
    }
  }

  // f(the 16-byte piece's offset in a dense box, its offset in shared memory)
  template <class F>
  void for_each_piece(const F& f) const {
    for (uint32_t at = 0; at < bytes(); at += 16) f(at, swizzled(offset + at, map.swizzle));
  }

  const TensorMap map;
  const uint32_t offset;
  const int row_bytes;
  const int64_t column;
  const int row;
};

void read_shared(const HopperBlock& units, TmaStore& store) {
  if (store.has_read) return;
  store.has_read = true;
  const Box box(store.map, store.from, store.column, store.row, "tma_store_2d", store.where);
  observer::accessed({store.from, box.bytes(), false, false, false, store.code, true});
  store.data.resize(box.bytes());
  box.for_each_piece([&](uint32_t at, uint32_t from) { std::memcpy(&store.data[at], &units.seen[from], 16); });
  box.for_each_row_inside(
      [&](int, char* to, size_t, size_t n) { observer::accessed({to, n, true, false, false, store.code, true}); });
}

void write_global(TmaStore& store) {
  if (store.done) return;
  store.done = true;
  const Box box(store.map, store.from, store.column, store.row, "tma_store_2d", store.where);
  box.for_each_row_inside([&](int r, char* to, size_t skipped, size_t n) {
    std::memcpy(to, &store.data[size_t(r) * size_t(box.row_bytes) + skipped], n);
  });
}

}  // namespace

void tma_load_2d(void* to, const TensorMap& map, uint64_t* address, int column, int row, Where where) {
  const void* const code = __builtin_return_address(0);
  HopperBlock& units = hopper();
  Mbarrier& barrier = units.barrier(address, "tma_load_2d", where);
  if (!barrier.seen_by_units)
    fail("tma_load_2d: its mbarrier has been made (" + text_of(barrier.made_at) + ") without fence_barrier_init",
         where);
  const Box box(map, to, column, row, "tma_load_2d", where);
  box.for_each_row_inside(
      [&](int, const char* from, size_t, size_t n) { observer::accessed({from, n, false, false, false, code, true}); });
  observer::accessed({to, box.bytes(), true, false, true, code, true});
  poison(to, box.bytes());
  poison(&units.seen[box.offset], box.bytes());
  ++barrier.loads;
  later([&units, &barrier, box, to, code, where] {
    if (units.block.live == 0) fail("the block ended before a box of tma_load_2d had landed", where);
    std::vector<char> data(box.bytes(), 0);
    box.for_each_row_inside([&](int r, const char* from, size_t skipped, size_t n) {
      std::memcpy(&data[size_t(r) * size_t(box.row_bytes) + skipped], from, n);
    });
    box.for_each_piece([&](uint32_t at, uint32_t into) {
      std::memcpy(units.block.shared.memory + into, &data[at], 16);
      std::memcpy(&units.seen[into], &data[at], 16);
    });
    observer::landed(units.block, {to, box.bytes(), true, false, false, code, true}, barrier.number, barrier.current);
    --barrier.loads;
    barrier.bytes -= int64_t(box.bytes());
    barrier.check_phase();
  });
}

void tma_store_2d(const TensorMap& map, const void* from, int column, int row, Where where) {
  const void* const code = __builtin_return_address(0);
  const Box box(map, from, column, row, "tma_store_2d", where);
  observer::accessed({from, box.bytes(), false, false, false, code, true});
  hopper().stores[size_t(self->number)].open.push_back(std::make_shared<TmaStore>(
      TmaStore{map, static_cast<const char*>(from), column, row, false, false, {}, where, code}));
}

void tma_store_commit(Where where) {
  if (removed(where)) return;
  TmaStores& stores = hopper().stores[size_t(self->number)];
  stores.groups.push_back(std::exchange(stores.open, {}));
}

void tma_store_wait(int pending, bool only_read, Where where) {
  if (removed(where)) return;
  HopperBlock& units = hopper();
  auto& groups = units.stores[size_t(self->number)].groups;
  const ptrdiff_t waited_for = std::max<ptrdiff_t>(ptrdiff_t(groups.size()) - pending, 0);
  for (ptrdiff_t i = 0; i < waited_for; ++i) {
    for (const auto& store : groups[size_t(i)]) {
      if (only_read && store->has_read) continue;
      read_shared(units, *store);
      if (only_read)
        later([store] { write_global(*store); });
      else
        write_global(*store);
    }
  }
  if (!only_read) groups.erase(groups.begin(), groups.begin() + waited_for);
}

void check_stores_finished(HopperBlock& units, const Thread& thread) {
  const TmaStores& stores = units.stores[size_t(thread.number)];
  for (const auto& group : stores.groups)
    for (const auto& store : group)
      if (!store->has_read) fail("the thread returned without having waited for its tma_store_2d", store->where);
  if (!stores.open.empty())
    fail("the thread returned without having committed its tma_store_2d", stores.open.front()->where);
}

}  // namespace minigpt::emulator
