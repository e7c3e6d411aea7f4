// The product of rows with packed columns by tile registers: the same interface as product.h.
//
// Columns are packed into panels of 32. A panel holds, for each step of 64 bytes along the depth, two tiles of 16 dwords by
// 16 columns: `[panel][step][2][16 dwords][16 columns]`, with zeros where depth or columns end. A block is 32 rows by 32
// columns: two tiles of rows times two of columns into four of sums, so four loads feed four products.
//
// All rows are multiplied with one panel before the next. Where the depth is long, a panel is divided into chunks that stay
// in the L1 cache, and the sums between them into a buffer. While the next block is multiplied, the epilogue takes the sums
// of the block before, four rows at each step: vector instructions run beside those of tiles. In the same way, row 0 of an
// int8 product is multiplied by vectors beside the first block, since one row more would often be a tile more.
#pragma once

#include "product.h"

namespace qbert {

constexpr int kTile = 16;          // rows of a tile, and dwords of its rows
constexpr int kBlock = 2 * kTile;  // rows and columns of a block

struct TilePanels {
  static constexpr int kWidth = kBlock / kLanes;
  int columns, depth;
  int steps = depth / kTile, count = (columns + kBlock - 1) / kBlock;

  TilePanels(int columns, int depth) : columns(columns), depth(int(round_up(depth, kTile))) {}
  int first(int panel) const { return panel * kWidth; }
  int width(int) const { return kWidth; }
  std::size_t offset(int panel) const { return std::size_t(panel) * kBlock * depth; }
  std::size_t size() const { return offset(count); }
  static void arrange(Ints (&square)[kLanes]) { transpose(square); }
  static std::size_t at(int step, int vector, int) {
    return (std::size_t(step / kTile) * kWidth + vector) * kTile * kTile + step % kTile * kTile;
  }
};

template <class Tiles>
class TileProduct {
 public:
  using Dot = typename Tiles::Dot;
  using Layout = TilePanels;
  using Powers = typename Tiles::Powers;
  static constexpr int kDepth = 4 * kTile;  // rows are read up to a multiple of this many bytes
  static constexpr int kColumns = kBlock;   // and written up to a multiple of this many columns
  static constexpr int kRows = kBlock;      // rows up to a multiple of it are read and written
  static std::size_t scratch_size(std::size_t rows) { return round_up(rows, kBlock) * kBlock; }

  // Multiply `count` rows, `stride` bytes apart, with packed columns, and pass the sums to `epilogue`. All of it is inlined:
  // an epilogue that is called takes a quarter longer.
  template <class Epilogue>
  [[gnu::noinline, gnu::flatten]] static void run(const void* rows, std::size_t stride, int count,
                                                  const std::uint32_t* packed, const Layout& layout,
                                                  const Epilogue& epilogue, std::int32_t* scratch) {
    if constexpr (Epilogue::kStores) {
      return store_blocks(static_cast<const unsigned char*>(rows), stride, count, packed, layout, epilogue);
    }
    const auto* bytes = static_cast<const unsigned char*>(rows);
    const auto* first = bytes + Tiles::kFirstRow * stride;  // the first row of tiles
    const int remaining = count - Tiles::kFirstRow, blocks = (remaining + kBlock - 1) / kBlock;
    const int chunks = blocks == 1 ? 1 : (layout.steps + kChunk - 1) / kChunk;
    Pending<Epilogue> pending{epilogue};
    FirstRow row;
    for (int panel = 0; panel < layout.count; ++panel) {
      const std::uint32_t* columns = packed + layout.offset(panel);
      const char* next = reinterpret_cast<const char*>(packed + layout.offset(panel + 1));
      row = {};
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int begin = layout.steps * chunk / chunks, steps = layout.steps * (chunk + 1) / chunks - begin;
        for (int block = 0; block < blocks; ++block) {
          Chunk work{first + block * kBlock * stride + begin * kDepth, stride, columns + begin * kBlock * kTile, steps};
          work.first_row = Tiles::kFirstRow && block == 0 ? bytes + begin * kDepth : nullptr;
          work.next = next;
          if (Dot::kPrefetch) work.lines = kLines * (block + 1) / blocks - kLines * block / blocks;
          next += std::size_t(work.lines) * 64 * steps;
          const int height = std::min(kBlock, remaining - block * kBlock);
          auto* sums = reinterpret_cast<Sum*>(scratch) + (chunks == 1 ? 0 : block * kBlock * Layout::kWidth);
          if (height > kTile) {
            multiply<2>(work, chunk > 0, sums, pending, row);
          } else {
            multiply<1>(work, chunk > 0, sums, pending, row);
          }
          if (chunk + 1 == chunks) {
            pending.set(sums, work.first_row ? &row : nullptr, Tiles::kFirstRow + block * kBlock, panel * kBlock,
                        (height + kGroup - 1) / kGroup);
            if (chunks > 1) pending.finish_all();  // beside the next block it took longer
          }
        }
      }
    }
    pending.finish_all();
  }

  static std::int64_t in_registers(std::int64_t repeats) {
    tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
    tile_zero<4>(), tile_zero<5>(), tile_zero<6>(), tile_zero<7>();
    for (std::int64_t i = 0; i < repeats; ++i) {
      Tiles::template add<0, 4, 6>(), Tiles::template add<1, 4, 7>();
      Tiles::template add<2, 5, 6>(), Tiles::template add<3, 5, 7>();
    }
    return repeats * 4 * kTile * kTile * kTile * Dot::kGroup * 2;
  }

 private:
  using Sum = typename Dot::Sum;
  using Sums = Several<Sum, Layout::kWidth>;
  static constexpr int kChunk = 12;         // steps: 24 KB of columns
  static constexpr int kLines = 2 * kTile;  // of 64 bytes, of a panel's step
  static constexpr int kGroup = 4;          // rows that the epilogue takes at a time

  struct Chunk {
    const unsigned char* rows;
    std::size_t stride;
    const std::uint32_t* columns;
    int steps;
    const unsigned char* first_row = nullptr;
    const char* next = nullptr;  // the next panel, prefetched into the L2 cache: this many lines at each step
    int lines = 0;
  };

  // The sums of row 0, which vectors multiply; two of each, so that an addition need not wait for the one before.
  struct FirstRow {
    Sum even[Layout::kWidth], odd[Layout::kWidth];
  };

  // A block whose sums are to be passed to the epilogue.
  template <class Epilogue>
  struct Pending {
    const Epilogue& epilogue;
    const Sum* sums = nullptr;
    Sums first_row = {};
    bool has_first_row = false;
    int row = 0, column = 0, group = 0, groups = 0;

    void set(const Sum* from, const FirstRow* first, int at_row, int at_column, int count) {
      sums = from, row = at_row, column = at_column, group = 0, groups = count, has_first_row = first;
      if (first) {
        for (int v = 0; v < Layout::kWidth; ++v) first_row[v] = first->even[v] + first->odd[v];
      }
    }

    [[gnu::noinline, gnu::flatten]] void finish_all() { finish(groups); }

    // Pass the groups before `until`.
    [[gnu::always_inline]] void finish(int until) {
      for (; group < std::min(until, groups); ++group) {
        auto write = epilogue.template at<Layout::kWidth>(column);
        if (group == 0 && has_first_row) write(0, 0, first_row);
#pragma GCC unroll 4
        for (int r = 0; r < kGroup; ++r) write(row + group * kGroup, r, row_of_sums(sums, group * kGroup + r));
      }
    }
  };

  static Sums row_of_sums(const Sum* sums, int row) {
    return each_of(std::make_index_sequence<Layout::kWidth>{}, [=](std::size_t v) { return sums[row * Layout::kWidth + v]; });
  }

  // Where the epilogue only stores the sums, as those of scores, the tiles are stored there at once.
  template <class Epilogue>
  static void store_blocks(const unsigned char* rows, std::size_t stride, int count, const std::uint32_t* packed,
                           const Layout& layout, const Epilogue& epilogue) {
    for (int panel = 0; panel < layout.count; ++panel) {
      for (int row = 0; row < count; row += kBlock) {
        const std::uint32_t* columns = packed + layout.offset(panel);
        auto* to = epilogue.to + row * epilogue.stride + panel * kBlock;
        if (count - row > kTile) {
          store_block<2>(rows + row * stride, stride, columns, layout.steps, to, epilogue.stride);
        } else {
          store_block<1>(rows + row * stride, stride, columns, layout.steps, to, epilogue.stride);
        }
      }
    }
  }

  template <int Height, class Number>
  static void store_block(const unsigned char* rows, std::size_t stride, const std::uint32_t* columns, int steps, Number* to,
                          std::size_t to_stride) {
    zero_sums<Height>();
    for (int step = 0; step < steps; ++step) {
      multiply_step<Height>(rows + step * kDepth, stride, columns + step * kBlock * kTile);
    }
    store_sums<Height>(to, to_stride * sizeof(Number));
  }

  // The four tiles of sums are the registers 0 to 3; with a height of one tile, the first two.
  template <int Height>
  static void zero_sums() {
    tile_zero<0>(), tile_zero<1>();
    if (Height == 2) tile_zero<2>(), tile_zero<3>();
  }

  template <int Height>
  static void load_sums(const void* from, std::size_t stride) {
    const auto* bytes = static_cast<const char*>(from);
    tile_load<0>(bytes, stride), tile_load<1>(bytes + 4 * kTile, stride);
    bytes += kTile * stride;
    if (Height == 2) tile_load<2>(bytes, stride), tile_load<3>(bytes + 4 * kTile, stride);
  }

  template <int Height>
  static void store_sums(void* to, std::size_t stride) {
    auto* bytes = static_cast<char*>(to);
    tile_store<0>(bytes, stride), tile_store<1>(bytes + 4 * kTile, stride);
    bytes += kTile * stride;
    if (Height == 2) tile_store<2>(bytes, stride), tile_store<3>(bytes + 4 * kTile, stride);
  }

  // Add the products of `Height` tiles of rows with two of columns.
  template <int Height>
  [[gnu::always_inline]] static void multiply_step(const unsigned char* rows, std::size_t stride,
                                                   const std::uint32_t* columns) {
    tile_load<6>(columns, 4 * kTile);
    Tiles::template load_rows<4>(rows, stride);
    tile_load<7>(columns + kTile * kTile, 4 * kTile);
    if (Height == 2) Tiles::template load_rows<5>(rows + kTile * stride, stride);
    Tiles::template add<0, 4, 6>(), Tiles::template add<1, 4, 7>();
    if (Height == 2) Tiles::template add<2, 5, 6>(), Tiles::template add<3, 5, 7>();
  }

  // Multiply a chunk of a block of `Height` tiles of rows; `sums` receives the sums, and holds those so far if `more`.
  template <int Height, class Epilogue>
  [[gnu::always_inline]] static void multiply(const Chunk& chunk, bool more, Sum* sums, Pending<Epilogue>& pending,
                                              FirstRow& row) {
    constexpr std::size_t kStride = kBlock * sizeof(std::int32_t);
    if (more) {
      load_sums<Height>(sums, kStride);
    } else {
      zero_sums<Height>();
    }
    if (chunk.first_row) {
      steps<Height, true>(chunk, pending, row);
    } else {
      steps<Height, false>(chunk, pending, row);
    }
    pending.finish_all();
    store_sums<Height>(sums, kStride);
  }

  template <int Height, bool WithFirstRow, class Epilogue>
  [[gnu::always_inline]] static void steps(const Chunk& chunk, Pending<Epilogue>& pending, FirstRow& row) {
    const int groups_a_step = (kBlock / kGroup + chunk.steps - 2) / std::max(chunk.steps - 1, 1);
    const char* next = chunk.next;
    FirstRow sums = row;
    for (int step = 0; step < chunk.steps; ++step) {
      const std::uint32_t* columns = chunk.columns + std::size_t(step) * kBlock * kTile;
      if constexpr (WithFirstRow) {
        const unsigned char* dwords = chunk.first_row + step * kDepth;
#pragma GCC unroll 16
        for (int i = 0; i < kTile; ++i) {
          const Ints dword = load<std::int32_t>(dwords + 4 * i) - Ints{};
#pragma GCC unroll 2
          for (int v = 0; v < Layout::kWidth; ++v) {
            Dot::add(i % 2 ? sums.odd[v] : sums.even[v], dword, load<Ints>(columns + Layout::at(i, v, 0)));
          }
        }
      }
      multiply_step<Height>(chunk.rows + step * kDepth, chunk.stride, columns);
      for (int line = 0; line < chunk.lines; ++line, next += 64) __builtin_prefetch(next, 0, 2);
      if (step > 0) pending.finish(step * groups_a_step);
    }
    if (WithFirstRow) row = sums;
  }
};

}  // namespace qbert
