// Memory for weights and activations: aligned, zeroed, in huge pages where the system has them, freed all at once.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "vector.h"

namespace qbert {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const Chunk& chunk : chunks_) munmap(chunk.start, chunk.size);
  }

  template <class Value>
  Value* allocate(std::size_t count) {
    const std::size_t size = round_up(count * sizeof(Value), kAlignment);
    if (chunks_.empty() || used_ + size > chunks_.back().size) {
      const std::size_t mapped = round_up(std::max(size, kChunk), kPage);
      void* start = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (start == MAP_FAILED) throw std::bad_alloc();
      chunks_.push_back({static_cast<unsigned char*>(start), mapped});
#if defined(MADV_HUGEPAGE)  // Linux has it; where it fails, memory is only slower
      madvise(start, mapped, MADV_HUGEPAGE);
#endif
      used_ = 0;
    }
    unsigned char* allocated = chunks_.back().start + used_;
    used_ += size;
    return reinterpret_cast<Value*>(allocated);
  }

 private:
  static constexpr std::size_t kAlignment = 64, kPage = 2 << 20, kChunk = 16 << 20;
  struct Chunk {
    unsigned char* start;
    std::size_t size;
  };
  std::vector<Chunk> chunks_;
  std::size_t used_ = 0;
};

}  // namespace qbert
