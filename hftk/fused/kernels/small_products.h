// Products of single heads, which are too small for the libraries that make large ones.

#pragma once

#include "basics.h"

namespace {

// Keys are padded to whole lines, so that loops over them are of a length that the compiler knows.
int64_t padded(int64_t keys) { return (keys + kLine - 1) / kLine * kLine; }

// (width, padded keys) from rows of keys or values, 0 behind them
void transpose(const float* from, int64_t step, float* to, int64_t keys, int64_t width) {
  const int64_t wide = padded(keys);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < keys; ++j) to[i * wide + j] = from[j * step + i];
    for (int64_t j = keys; j < wide; ++j) to[i * wide + j] = 0;
  }
}

// Row-major or turned: the element (i, j) is at i * row + j * column.
struct Matrix {
  const float* values;
  int64_t row, column;
};

// A line of numbers in registers, which need not stand at a round address.
typedef float Line __attribute__((vector_size(kLine * sizeof(float)), aligned(alignof(float)), may_alias));

// `Rows` rows and `Lines` lines of columns of the product of a (rows, count) and b (count, columns, side by side)
template <int64_t Rows, int64_t Lines>
inline void tile(Matrix a, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row) {
  Line sums[Rows][Lines] = {};
  for (int64_t i = 0; i < count; ++i) {
    const Line* lines = reinterpret_cast<const Line*>(b + i * b_row);
    for (int64_t r = 0; r < Rows; ++r)
      for (int64_t l = 0; l < Lines; ++l) sums[r][l] += a.values[r * a.row + i * a.column] * lines[l];
  }
  for (int64_t r = 0; r < Rows; ++r)
    for (int64_t l = 0; l < Lines; ++l) reinterpret_cast<Line*>(to + r * to_row)[l] = sums[r][l];
}
template <int64_t Rows>
inline void tiles(Matrix a, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row, int64_t columns) {
  int64_t j = 0;
  for (; j + 2 * kLine <= columns; j += 2 * kLine) tile<Rows, 2>(a, count, b + j, b_row, to + j, to_row);
  for (; j + kLine <= columns; j += kLine) tile<Rows, 1>(a, count, b + j, b_row, to + j, to_row);
  for (; j < columns; ++j)
    for (int64_t r = 0; r < Rows; ++r) {
      float sum = 0;
      for (int64_t i = 0; i < count; ++i) sum += a.values[r * a.row + i * a.column] * b[i * b_row + j];
      to[r * to_row + j] = sum;
    }
}
// to = a b
void small_product(Matrix a, int64_t rows, int64_t count, const float* b, int64_t b_row, float* to, int64_t to_row, int64_t columns) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) tiles<6>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
  for (; r + 3 <= rows; r += 3) tiles<3>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
  for (; r < rows; ++r) tiles<1>({a.values + r * a.row, a.row, a.column}, count, b, b_row, to + r * to_row, to_row, columns);
}

}  // namespace
