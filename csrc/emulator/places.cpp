#include "places.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

namespace minigpt::emulator {
namespace {

// What the debug information says of an address: its line, then the line that the function it was inlined into stands at
// there, and so on to the kernel. binutils' addr2line reads it.
const std::vector<Where>& chain_of(const void* code) {
  static std::map<const void*, std::vector<Where>> known;
  static std::deque<std::string> names;
  if (const auto found = known.find(code); found != known.end()) return found->second;
  std::vector<Where>& chain = known[code];
  Dl_info library;
  if (!code || !dladdr(code, &library) || !library.dli_fname) return chain;
  const auto offset = static_cast<const char*>(code) - static_cast<const char*>(library.dli_fbase) - 1;
  char address[32];
  std::snprintf(address, sizeof address, "%#lx", static_cast<unsigned long>(offset));
  std::string file;  // in single quotes for the shell
  for (const char* c = library.dli_fname; *c; ++c) file += *c == '\'' ? "'\\''" : std::string(1, *c);
  const std::string command = "addr2line -i -e '" + file + "' " + address + " 2>/dev/null";
  const std::unique_ptr<FILE, int (*)(FILE*)> answer(popen(command.c_str(), "r"), pclose);
  char text[1024];
  while (answer && std::fgets(text, sizeof text, answer.get())) {  // /folder/file.cuh:12 (discriminator 3)
    const std::string line = text;
    const size_t colon = line.rfind(':');
    if (colon == std::string::npos) continue;
    names.push_back(line.substr(0, colon));
    chain.push_back({names.back().c_str(), std::atoi(line.c_str() + colon + 1)});
  }
  return chain;
}

bool is_plumbing(Where where) {
  if (where.line == 0) return true;
  const std::string file = where.file;
  for (const std::string wrapper :
       {"/emulator/cuda.h", "/emulator/device.h", "/emulator/tensor_core.h", "/emulator/hopper.h",
        "/emulator/wgmma_matrix.h", "/emulator/bits.h", "/common/device.cuh", "/common/tensor_core.cuh",
        "/common/hopper.cuh", "/common/vector.cuh", "/cuda_bf16.hpp", "/cuda_fp16.hpp"})
    if (file.size() >= wrapper.size() && file.compare(file.size() - wrapper.size(), wrapper.size(), wrapper) == 0)
      return true;
  return false;
}

}  // namespace

Where where_is(const void* code) {
  const std::vector<Where>& chain = chain_of(code);
  for (const Where where : chain)
    if (!is_plumbing(where)) return where;
  return chain.empty() ? Where{"", 0} : chain.back();  // a wrapper that was not inlined: better than nothing
}

std::string place_of(const void* code) {
  const Where inner = where_is(code);
  if (inner.line == 0) return "an unknown line (is binutils' addr2line installed?)";
  Where outer = inner;
  for (const Where where : chain_of(code))
    if (!is_plumbing(where)) outer = where;
  const bool same = text_of(outer) == text_of(inner);
  return text_of(inner) + (same ? "" : ", called from " + text_of(outer));
}

}  // namespace minigpt::emulator
