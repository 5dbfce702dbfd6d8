// Matrix operations of a warp, for wmma.h: tiles spread over the fragments of 32 lanes.
#pragma once

#include "emulator.h"

namespace fwm {
namespace emulator {

enum class Operand { a, b, accumulator };
enum class Number { bf16, half, tf32, float32 };

// Which tile a fragment holds.
struct Tile {
  Operand operand;
  Number number;
  int rows, columns;
};

// A load or store of a tile, as one lane asks for it.
struct TileAccess {
  Tile tile;
  void* memory;
  unsigned leading;  // elements from one row (or column) to the next
  bool by_columns;
  bool store;
  void* elements;  // the lane's fragment
};
void access_tile(const TileAccess& access, Site site);

// d = a b + c, where c and d may be the same fragment.
struct Product {
  Tile a, b, c;
  const void* a_elements;
  const void* b_elements;
  const float* c_elements;
  float* d_elements;
};
void multiply(const Product& product, Site site);

}  // namespace emulator
}  // namespace fwm
