#include "matrix.h"

#include <cstring>

#include "block.h"
#include "observer.h"

namespace fwm {
namespace emulator {

namespace {

constexpr unsigned kFullWarp = 0xffffffffu;
constexpr int kMost = 16 * 16;  // elements of the largest tile

int bytes_of(Number number) { return number == Number::bf16 || number == Number::half ? 2 : 4; }

struct Slot {
  int lane, index;
};

// Who holds the element (row, column). CUDA does not say, so it is a permutation, another one for
// each operand: code that relies on some order fails.
Slot slot(const Tile& tile, int row, int column) {
  constexpr unsigned factors[] = {0x9e37u, 0x85ebu, 0xc2b3u};  // odd: coprime to the count
  const unsigned count = tile.rows * tile.columns, per_lane = count / 32;
  const unsigned element = row * tile.columns + column;
  const unsigned at = (element * factors[static_cast<int>(tile.operand)] + 77) % count;
  return {static_cast<int>(at / per_lane), static_cast<int>(at % per_lane)};
}

void check(const TileAccess& access, const char* name, Site site) {
  const int bytes = bytes_of(access.tile.number);
  if (reinterpret_cast<std::uintptr_t>(access.memory) % 32) {
    fail("%s %s: the tile's address is not a multiple of 32 bytes", name, place(site).c_str());
  }
  if (access.leading * bytes % 16) {
    fail("%s %s: the leading dimension %u is not a multiple of %d", name, place(site).c_str(),
         access.leading, 16 / bytes);
  }
}

// Tells the observer what a lane of a real GPU touches: the layout of mma.sync, which nvcc's code
// for wmma follows. A tile lies in memory as lines of consecutive elements.
void note_tile(const TileAccess& access, const void* pc) {
  const int bytes = bytes_of(access.tile.number);
  const int lines = access.by_columns ? access.tile.columns : access.tile.rows;
  const int length = access.by_columns ? access.tile.rows : access.tile.columns;
  const int group = running_thread % 32 / 4, member = running_thread % 4;
  // 8 lines of 16 bytes are read at once; accumulators go by pairs, or across the lines.
  int line = group, at = member * (bytes == 2 ? 2 : 1), line_step = 8, step = bytes == 2 ? 8 : 4;
  int width = 4;
  const bool is_accumulator = access.tile.operand == Operand::accumulator;
  const bool across = access.by_columns == (access.tile.operand != Operand::b);
  if (bytes == 4 && is_accumulator && !access.by_columns) {
    at = 2 * member, step = 8, width = 8;
  } else if (bytes == 4 && across) {
    line = member, at = group, line_step = 4, step = 8;
  }
  char* memory = static_cast<char*>(access.memory);
  for (int l = line; l < lines; l += line_step) {
    for (int i = at; i < length; i += step) {
      note_access(memory + (std::size_t(l) * access.leading + i) * bytes, width, access.store, pc);
    }
  }
}

void move_element(const TileAccess& of_tile, const TileAccess& of_lane, int row, int column,
                  int index) {
  const int bytes = bytes_of(of_tile.tile.number);
  const std::size_t line = of_tile.by_columns ? column : row;
  const std::size_t at = of_tile.by_columns ? row : column;
  char* memory = static_cast<char*>(of_tile.memory) + (line * of_tile.leading + at) * bytes;
  char* element = static_cast<char*>(of_lane.elements) + index * bytes;
  std::memcpy(of_tile.store ? memory : element, of_tile.store ? element : memory, bytes);
}

void move_tile(void* const* arguments, unsigned) {
  const auto& first = *static_cast<const TileAccess*>(arguments[0]);
  for (int l = 1; l < 32; l++) {
    const auto& other = *static_cast<const TileAccess*>(arguments[l]);
    if (other.memory != first.memory || other.leading != first.leading ||
        other.by_columns != first.by_columns) {
      fail("lanes 0 and %d load or store different tiles", l);
    }
  }
  for (int row = 0; row < first.tile.rows; row++) {
    for (int column = 0; column < first.tile.columns; column++) {
      const Slot s = slot(first.tile, row, column);
      move_element(first, *static_cast<const TileAccess*>(arguments[s.lane]), row, column, s.index);
    }
  }
}

float to_float(const void* elements, int index, Number number) {
  switch (number) {
    case Number::bf16:
      return __bfloat162float(static_cast<const Bf16*>(elements)[index]);
    case Number::half:
      return __half2float(static_cast<const Half*>(elements)[index]);
    case Number::tf32: {
      // Tensor cores do not see the low bits, rounded away or not.
      const float x = static_cast<const float*>(elements)[index];
      return __uint_as_float(__float_as_uint(x) & 0xffffe000u);
    }
    default:
      return static_cast<const float*>(elements)[index];
  }
}

// A tile from the fragments of all lanes, as rows.
template <class Elements>
void collect(const Tile& tile, float* out, const Elements& elements_of_lane) {
  for (int row = 0; row < tile.rows; row++) {
    for (int column = 0; column < tile.columns; column++) {
      const Slot s = slot(tile, row, column);
      *out++ = to_float(elements_of_lane(s.lane), s.index, tile.number);
    }
  }
}

void multiply_tiles(void* const* arguments, unsigned) {
  const auto lane = [&](int l) -> const Product& {
    return *static_cast<const Product*>(arguments[l]);
  };
  const Product& first = lane(0);
  float a[kMost], b[kMost], c[kMost];
  collect(first.a, a, [&](int l) { return lane(l).a_elements; });
  collect(first.b, b, [&](int l) { return lane(l).b_elements; });
  collect(first.c, c, [&](int l) { return lane(l).c_elements; });
  const int m = first.a.rows, n = first.b.columns, depth = first.a.columns;
  for (int i = 0; i < m; i++) {
    for (int k = 0; k < depth; k++) {
      for (int j = 0; j < n; j++) c[i * n + j] += a[i * depth + k] * b[k * n + j];
    }
  }
  for (int i = 0; i < m; i++) {
    for (int j = 0; j < n; j++) {
      const Slot s = slot(first.c, i, j);
      lane(s.lane).d_elements[s.index] = c[i * n + j];
    }
  }
}

}  // namespace

void access_tile(const TileAccess& access, Site site) {
  const char* name = access.store ? "store_matrix_sync" : "load_matrix_sync";
  check(access, name, site);
  if (observer) note_tile(access, __builtin_return_address(0));
  TileAccess mine = access;
  warp_collective(name, kFullWarp, &mine, &move_tile, site);
}

void multiply(const Product& product, Site site) {
  Product mine = product;
  warp_collective("mma_sync", kFullWarp, &mine, &multiply_tiles, site);
}

}  // namespace emulator
}  // namespace fwm
