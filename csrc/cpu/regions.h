// Codes in a few regions, each with its centre and radius, so that rows are compared with those alone that may hold
// their nearest code.
//
// For codes that lie in clusters far apart or along one long coordinate, which no bound about one centre tells apart.
#pragma once

#include "cpu/kernels.h"
#include "cpu/support.h"

namespace vq_cpu {

struct Codebook;
struct RowBlock;
struct Search;

class CodeRegions {
 public:
  static constexpr int kMost = 16;
  static constexpr unsigned kAll = (1u << kMost) - 1u;

  // Once a call, after ensure_lengths() and ensure_scaled() of the codebook. Thread-safe. False if there is no memory.
  bool ensure(const Codebook& codebook, const Kernels* kernels);

  // The usable codes in the order of their regions, those of one in ascending order, and what belongs to each.
  int64_t count() const { return count_; }
  const int32_t* index() const { return index_; }  // which code it is
  const float* codes() const { return codes_; }
  const float* scaled() const { return scaled_; }
  const uint8_t* usable() const { return usable_; }
  const double* half_squares() const { return half_squares_; }
  const double* lengths() const { return lengths_; }

  // The regions that may hold the nearest code of a row, as bits.
  unsigned needed(const float* row) const;
  // The codes of such regions, [2][n] first ones and those behind the last; returns n.
  int spans(unsigned regions, int64_t* spans) const;
  // How many they are.
  int64_t size(unsigned regions) const;
  // Whether rows that need `more` had better not join `count` others, which need `regions`.
  bool is_apart(unsigned regions, unsigned more, int count) const {
    return count >= 8 && (regions | more) != regions && 4 * size(regions | more) > 5 * size(regions);
  }

 private:
  // Codes begin .. end - 1 of index_, of which the values of one coordinate are the most spread out.
  struct Region {
    int64_t begin, end;
    int64_t coordinate;
    double middle, spread;  // of this coordinate; the sum of all square distances from the mean
  };

  void measure(Region* region, double* sums) const;
  bool split(Region* region, Region* other);
  bool divide(const Codebook& codebook);
  void gather(const Codebook& codebook);

  const Kernels* kernels_ = nullptr;
  const Codebook* codebook_ = nullptr;
  bool ready_ = false;
  int64_t count_ = 0;
  int regions_ = 0;
  int64_t begin_[kMost + 1] = {};
  double radius_[kMost] = {}, length_[kMost] = {}, centre2_[kMost] = {};  // the largest |e - c| and |e|, and |c|^2
  Buffer<int32_t> index_, other_;
  Buffer<float> codes_, scaled_copy_, centres_;
  const float* scaled_ = nullptr;
  Buffer<uint8_t> usable_;
  Buffer<double> half_squares_, lengths_;
};

// Rows of a block in the order of the regions that they need, so that those compared together need few.
class RegionOrder {
 public:
  // Whether it is worth asking for, of so many rows. Not for some blocks after one where it was of little use.
  bool is_wanted(const Codebook& codebook, int rows);
  // Sorts rows [n] of a block. False if there is no memory.
  bool sort(Search* search, const RowBlock& block, int* rows, int n);
  // What the row at a place of the order needs.
  unsigned needed(int at) const { return unsigned(keys_[at] >> 32); }
  // `compared`: with how many codes each of the rows was compared, summed up.
  void learn(int64_t compared, int64_t all) { skip_ = compared > all / 4 * 3 ? kSkippedBlocks : 0; }

 private:
  static constexpr int kSkippedBlocks = 15;

  int skip_ = 0;
  Buffer<uint64_t> keys_;  // [block_rows]: regions, and the row
  Buffer<float> row_;      // [dim]
};

}  // namespace vq_cpu
