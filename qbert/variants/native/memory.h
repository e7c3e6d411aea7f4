// Memory for activations and for packed weights: aligned, zeroed, in huge pages where the system has them, freed all at once.
// Packed weights may also be mapped from a file, so that all processes of a machine share them.
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
  static constexpr std::size_t kAlignment = 64;

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
  static constexpr std::size_t kPage = 2 << 20, kChunk = 16 << 20;
  struct Chunk {
    unsigned char* start;
    std::size_t size;
  };
  std::vector<Chunk> chunks_;
  std::size_t used_ = 0;
};

// Arrays that are filled once and then only read. Of one model and kernel they are always the same, in the same order. So
// where they follow each other in a file, they need not be filled again: they are taken from where that file is mapped.
class Weights {
 public:
  struct Piece {
    const void* start;
    std::size_t size;  // a multiple of the alignment
  };

  Weights() = default;
  Weights(const void* mapped, std::size_t size) : mapped_(static_cast<const unsigned char*>(mapped)), left_(size) {}

  // Return `count` values, for which `fill` is called with their place unless they are mapped.
  template <class Value, class Fill>
  const Value* make(std::size_t count, const Fill& fill) {
    const std::size_t size = round_up(count * sizeof(Value), Arena::kAlignment);
    if (mapped_) {
      if (size > left_) throw std::bad_alloc();
      const auto* start = reinterpret_cast<const Value*>(mapped_);
      mapped_ += size, left_ -= size;
      return start;
    }
    auto* start = arena_.allocate<Value>(count);
    fill(start);
    pieces_.push_back({start, size});
    return start;
  }

  bool all_taken() const { return left_ == 0; }

  // The arrays that were filled here.
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  Arena arena_;
  std::vector<Piece> pieces_;
  const unsigned char* mapped_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace qbert
