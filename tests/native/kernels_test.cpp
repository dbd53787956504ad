// Test of the CPU kernels without Python: every instruction set of this binary and machine, with every narrow first
// pass it has, against the contract of vq_kernels/backends/base.py, written out once more in plain loops.
//
//   kernels_test          all instruction sets; one line for each, exit status 1 on a wrong result
//   kernels_test neon     that one; exit status 2 if it is not compiled in or not on this machine
#include <math.h>
#include <stdio.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "checks.h"
#include "passes_test.h"

namespace {

enum Kind { kNormal, kGrid, kCopies, kFar, kTiny, kHuge, kNonfinite, kPermuted, kNearCopies, kKinds };

void fill(std::vector<float>& rows, std::vector<float>& codes, int64_t dim, Kind kind, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> small(-2, 2);
  const auto draw = [&](float shift, float scale) {
    return kind == kGrid ? float(small(random)) : shift + scale * normal(random);
  };
  const float shift = kind == kFar ? 1000.0f : 0.0f;
  const float scale = kind == kTiny ? 1e-30f : kind == kHuge ? 1e15f : 1.0f;
  for (float& v : codes) v = draw(shift, scale);
  for (float& v : rows) v = draw(shift, scale);
  const int64_t n = int64_t(rows.size()) / dim, k = int64_t(codes.size()) / dim;
  if (kind == kCopies)  // codes that are equal, and codes that differ in their last bit
    for (int64_t j = 1; j < k; ++j) {
      const int64_t of = j / 3 * 3;
      for (int64_t d = 0; d < dim; ++d) codes[j * dim + d] = codes[of * dim + d];
      if (j % 3 == 2) codes[j * dim] = nextafterf(codes[j * dim], INFINITY);
    }
  if (kind == kPermuted) {  // all codes tie with a row that is constant
    for (int64_t j = 1; j < k; ++j) {
      for (int64_t d = 0; d < dim; ++d) codes[j * dim + d] = codes[(j - 1) * dim + d];
      std::shuffle(codes.begin() + j * dim, codes.begin() + (j + 1) * dim, random);
    }
    for (int64_t i = 0; i < n; ++i)
      for (int64_t d = 1; d < dim; ++d) rows[i * dim + d] = rows[i * dim];
  }
  if (kind == kNearCopies)  // in groups of 40, each value up to two last bits apart
    for (int64_t j = 0; j < k; ++j)
      for (int64_t d = 0; d < dim; ++d)
        codes[j * dim + d] = codes[j / 40 * 40 * dim + d] * (1.0f + 0x1p-22f * float(j % 40 ? small(random) : 0));
  if (kind == kNonfinite) {
    for (int64_t j = 0; j < k; j += 3) codes[j * dim + j % dim] = j % 2 ? INFINITY : NAN;
    for (int64_t i = 0; i < n; i += 4) rows[i * dim + i % dim] = i % 8 ? -INFINITY : NAN;
  }
}

struct Case {
  int64_t n, dim, k;
  int dtype;
  Layout layout;
  Kind kind;
};

void check_case(const Case& c, const std::string& isa, std::mt19937& random) {
  std::vector<float> x_values(size_t(c.n * c.dim)), codes(size_t(c.k * c.dim));
  fill(x_values, codes, c.dim, c.kind, random);
  char text[160];
  snprintf(text, sizeof text, "%s, N=%d D=%d K=%d dtype=%d layout=%d kind=%d", isa.c_str(), int(c.n),
           int(c.dim), int(c.k), c.dtype, int(c.layout), int(c.kind));
  where = text;
  Tensor x(x_values, c.n, c.dim, c.dtype, c.layout);
  const VqCodes codebook = {codes.data(), c.k, c.dim, VQ_FLOAT32};

  std::vector<int64_t> indices(size_t(c.n), -7), expected(size_t(c.n));
  for (const int metric : {VQ_COSINE, VQ_L2}) {
    const VqSearchOptions options = {metric, VQ_EXACT, 1.0};
    for (int64_t i = 0; i < c.n; ++i)
      expected[i] = nearest(&x.values[i * c.dim], codes, c.k, c.dim, metric == VQ_L2);
    expect(vq_cpu_nearest_code(&x.view, &codebook, nullptr, &options, 2, indices.data()) == VQ_OK, "status", 0);
    for (int64_t i = 0; i < c.n; ++i) expect(indices[i] == expected[i], "index", i);
    VqPreparedCodebook* prepared = nullptr;
    expect(vq_cpu_prepare_codebook(&codebook, &options, 2, &prepared) == VQ_OK, "status", 5);
    for (int turn = 0; turn < 2; ++turn) {
      indices.assign(size_t(c.n), -7);
      expect(vq_cpu_nearest_code(&x.view, &codebook, prepared, &options, 2, indices.data()) == VQ_OK, "status", 6);
      for (int64_t i = 0; i < c.n; ++i) expect(indices[i] == expected[i], "index with a prepared codebook", i);
    }
    vq_cpu_release_codebook(prepared);
  }

  // The fused step, every fifth row masked.
  std::vector<uint8_t> mask(size_t(c.n), 1);
  for (int64_t i = 4; i < c.n; i += 5) mask[i] = 0;
  Tensor out(std::vector<float>(size_t(c.n * c.dim)), c.n, c.dim, c.dtype, c.layout);
  std::vector<int64_t> counts(size_t(c.k));
  std::vector<float> sums(size_t(c.k * c.dim)), copy(size_t(c.k * c.dim));
  float loss = 0.0f;
  int64_t valid = 0;
  const VqQuantizeOptions step = {{VQ_L2, VQ_EXACT, 1.0}, 0.25f, 0};
  const VqQuantizeResult result = {out.view,      indices.data(), &loss,      &valid,
                                   counts.data(), sums.data(),    copy.data()};
  expect(vq_cpu_vector_quantize(&x.view, &codebook, nullptr, mask.data(), &step, 2, &result) == VQ_OK, "status", 1);
  std::vector<int64_t> true_counts(size_t(c.k));
  std::vector<double> true_sums(size_t(c.k * c.dim));
  double error = 0.0;
  int64_t rows = 0;
  for (int64_t i = 0; i < c.n; ++i) {
    const float* row = &x.values[i * c.dim];
    const bool finite = all_finite(row, c.dim);
    expect(indices[i] == (mask[i] ? expected[i] : -1), "index of the step", i);
    for (int64_t d = 0; d < c.dim; ++d) {
      const float code = codes[expected[i] * c.dim + d];
      const float want = !mask[i] ? 0.0f : finite ? code : NAN;
      Tensor rounded({want}, 1, 1, c.dtype, kRows);
      if (mask[i]) expect(same_bits(out.read(i, d), rounded.values[0]), "quantized", i);
      if (mask[i]) error += (double(row[d]) - double(code)) * (double(row[d]) - double(code));
      if (mask[i] && finite) true_sums[expected[i] * c.dim + d] += double(row[d]);
    }
    rows += mask[i];
    if (mask[i] && finite) ++true_counts[expected[i]];
  }
  expect(valid == rows, "valid_rows", valid);
  const double mean = rows ? 0.25 * error / double(rows * c.dim) : 0.0;
  if (isfinite(float(mean))) expect(fabs(loss - mean) <= 2e-5 * mean + 1e-37, "loss", 0);
  for (int64_t j = 0; j < c.k; ++j) {
    expect(counts[j] == true_counts[j], "count", j);
    for (int64_t d = 0; d < c.dim; ++d) {
      expect(same_bits(sums[j * c.dim + d], float(true_sums[j * c.dim + d])), "sum", j);
      expect(same_bits(copy[j * c.dim + d], codes[j * c.dim + d]), "copy", j);
    }
  }

  // Its gradient: what comes in, and the loss's part.
  Tensor grad(std::vector<float>(size_t(c.n * c.dim), 0.5f), c.n, c.dim, c.dtype, c.layout);
  Tensor grad_x(std::vector<float>(size_t(c.n * c.dim)), c.n, c.dim, c.dtype, c.layout);
  const float loss_grad = 0.125f;
  expect(vq_cpu_vector_quantize_backward(&grad.view, &loss_grad, &x.view, &codebook, indices.data(),
                                         VQ_STRAIGHT_THROUGH, 2, &grad_x.view) == VQ_OK,
         "status", 2);
  for (int64_t i = 0; i < c.n; ++i)
    for (int64_t d = 0; d < c.dim && isfinite(mean); ++d) {
      const double code = indices[i] < 0 ? 0.0 : codes[indices[i] * c.dim + d];
      const double want = indices[i] < 0 ? 0.0 : 0.5 + double(loss_grad) * (x.values[i * c.dim + d] - code);
      const double unit = c.dtype == VQ_FLOAT32 ? 1e-6 : 1e-2;
      if (fabs(want) < 6e4) expect(close(grad_x.read(i, d), want, unit), "gradient", i);
    }

  int64_t taken = 0;
  for (const int64_t count : true_counts) taken += count;
  const double weight = taken ? 0.25 : 0.0;  // a step without rows changes nothing
  std::vector<float> size(size_t(c.k), 1.0f), average(codes), moved(codes);
  expect(vq_cpu_ema_update(moved.data(), size.data(), average.data(), counts.data(), 0, sums.data(), c.k,
                           c.dim, 0.25, 1e-5, 0, 2) == VQ_OK,
         "status", 3);
  for (int64_t j = 0; j < c.k; ++j) {
    expect(close(size[j], 1.0 + weight * (double(counts[j]) - 1.0), 1e-6), "cluster size", j);
    for (int64_t d = 0; d < c.dim; ++d) {
      const double was = codes[j * c.dim + d], want = was + weight * (double(sums[j * c.dim + d]) - was);
      if (fabs(want) > 1e-30 || want == 0.0)
        expect(close(average[j * c.dim + d], want, 1e-6 * (1.0 + fabs(was))), "average", j);
    }
  }
}

// Casts of every pattern of bits, and of every boundary between two, through the kernels that read and write.
void check_casts(int dtype, const std::string& isa) {
  where = isa + ", casts of dtype " + std::to_string(dtype);
  const int64_t n = 1 << 16, dim = 8;
  std::vector<float> codes(size_t(n * dim));
  for (int64_t i = 0; i < n; ++i) {
    Bf16 b = {uint16_t(i)};
    F16 h = {uint16_t(i)};
    const float v = dtype == VQ_BFLOAT16 ? to_float(b) : to_float(h);
    const float up = nextafterf(v, INFINITY), middle = 0.5f * v + 0.5f * to_float(F16{uint16_t(i + 1)});
    const float row[8] = {v, up, nextafterf(v, -INFINITY), middle, nextafterf(middle, INFINITY),
                          nextafterf(middle, -INFINITY), v * 1.00390625f, -middle};
    for (int64_t d = 0; d < dim; ++d) codes[i * dim + d] = row[d];
  }
  Tensor out(std::vector<float>(size_t(n * dim)), n, dim, dtype, kRows);
  std::vector<int64_t> indices(size_t(n), 0);
  for (int64_t i = 0; i < n; ++i) indices[i] = i;
  const VqCodes codebook = {codes.data(), n, dim, VQ_FLOAT32};
  expect(vq_cpu_gather_codes(&codebook, indices.data(), &out.view, 2) == VQ_OK, "status", 4);
  for (int64_t i = 0; i < n * dim; ++i) {
    Tensor rounded({codes[i]}, 1, 1, dtype, kRows);
    expect(same_bits(out.read(i / dim, i % dim), rounded.values[0]), "cast", i);
  }
}

void check_all(const std::string& isa) {
  const int64_t sizes[][3] = {{1, 1, 1},    {5, 3, 2},     {37, 8, 128}, {64, 64, 33},   {100, 100, 70},
                              {18, 256, 90}, {200, 17, 65}, {40, 64, 600}, {36, 32, 1500}};
  std::mt19937 random(7);
  int turn = 0;
  for (const auto& s : sizes)
    for (int kind = 0; kind < kKinds; ++kind)
      for (const int dtype : {VQ_FLOAT32, VQ_BFLOAT16, VQ_FLOAT16}) {
        if (dtype == VQ_FLOAT16 && (kind == kTiny || kind == kHuge)) continue;
        check_case({s[0], s[1], s[2], dtype, Layout(turn++ % 3), Kind(kind)}, isa, random);
      }
  check_casts(VQ_BFLOAT16, isa);
  check_casts(VQ_FLOAT16, isa);
}

// The pass that is chosen, by dimensions and codes.
void check_rule(int isa) {
  where = std::string(vq_cpu_isa_name(isa)) + ", rule";
  const bool int8 = vq_cpu_first_pass_usable(VQ_INT8_FIRST), matrix = isa == VQ_ISA_AMX;
  const bool int16 = vq_cpu_first_pass_usable(VQ_INT16_FIRST);
  const int wide = int8 ? VQ_INT8_FIRST : VQ_FLOAT32_FIRST, less = int16 ? VQ_INT16_FIRST : VQ_FLOAT32_FIRST;
  const int most_work = matrix ? VQ_BFLOAT16_FIRST : wide;
  const struct {
    int64_t dim, codes;
    int pass;
  } cases[] = {{64, 1024, most_work}, {64, 1023, wide}, {16, 512, int16 ? less : wide},
               {16, 511, less}, {16, 255, VQ_FLOAT32_FIRST}, {8, 16384, VQ_FLOAT32_FIRST}};
  for (const auto& c : cases) {
    const VqRows x = {nullptr, 1, 65536, c.dim, 65536 * c.dim, c.dim, 1, VQ_FLOAT32};
    expect(vq_cpu_first_pass(&x, c.codes) == c.pass, "first pass", c.dim);
  }
}

// What `vq_cpu_peak` counts: something for each kind of product that the set has, and with a matrix unit its own.
void check_roofs(int isa) {
  where = std::string(vq_cpu_isa_name(isa)) + ", roofs";
  for (const int pass : {VQ_FLOAT32_FIRST, VQ_BFLOAT16_FIRST, VQ_INT8_FIRST, VQ_INT16_FIRST}) {
    const int64_t operations = vq_cpu_peak(pass, 1, 3);
    expect(!operations || vq_cpu_first_pass_usable(pass), "operations without products", pass);
    expect(vq_cpu_peak(pass, 1, 6) == 2 * operations, "operations", pass);
  }
  if (isa == VQ_ISA_AMX) expect(vq_cpu_peak(VQ_BFLOAT16_FIRST, 1, 3) == 3 * 4 * 2 * 16 * 16 * 32, "tiles", 0);
}

// Code 0 loses half a step of integers up to `levels` in every value, code 1 gains one: no bound is too wide, and hardly
// one is needed less.
void check_integer_bound(float levels, const std::string& pass) {
  where = pass + ", bound";
  const int64_t n = 50, dim = 500;
  const float step = 0x1p-7f;
  std::vector<float> codes(size_t(4 * dim));
  for (int64_t d = 0; d < dim; ++d) {
    codes[d] = d == 0 ? levels * step : 20.4995f * step;
    codes[dim + d] = d == 0 ? levels * step : d == 1 ? 19.5005f * step : 20.5005f * step;
    codes[2 * dim + d] = -codes[d];  // so that their centre is zero
    codes[3 * dim + d] = -codes[dim + d];
  }
  const Tensor x(std::vector<float>(size_t(n * dim), 1.0f), n, dim, VQ_FLOAT32, kRows);
  const VqCodes codebook = {codes.data(), 4, dim, VQ_FLOAT32};
  expect(nearest(x.values.data(), codes, 4, dim, false) == 0, "truth", 0);
  for (const double scale : {1.0, 0.98}) {
    std::vector<int64_t> indices(size_t(n), -7);
    const VqSearchOptions options = {VQ_COSINE, VQ_EXACT, scale};
    expect(vq_cpu_nearest_code(&x.view, &codebook, nullptr, &options, 1, indices.data()) == VQ_OK, "status", 8);
    for (int64_t i = 0; i < n; ++i) expect(indices[i] == (scale < 1.0), "index", i);
  }
}

// The narrow passes of an instruction set; where it has none, all it has and the rule (-1).
void check_first_passes(const std::string& isa) {
  const auto is_narrow = [](int pass) {
    return pass == VQ_INT8_FIRST || pass == VQ_INT16_FIRST || pass == VQ_BFLOAT16_FIRST;
  };
  bool narrow = false;
  for (int pass = 0; pass < VQ_FIRST_PASS_COUNT; ++pass)
    narrow = narrow || (is_narrow(pass) && vq_cpu_first_pass_usable(pass));
  for (int pass = -1; pass < VQ_FIRST_PASS_COUNT; ++pass) {
    if (pass >= 0 && !vq_cpu_first_pass_usable(pass)) continue;
    if (narrow && !is_narrow(pass)) continue;
    vq_cpu_use_first_pass(pass);
    check_all(pass < 0 ? isa : isa + ", " + vq_cpu_first_pass_name(pass));
    const bool seven_bits = vq_cpu_first_pass_usable(VQ_INT16_FIRST);
    if (pass == VQ_INT8_FIRST) check_integer_bound(seven_bits ? 63.0f : 127.0f, isa + ", int8");
    if (pass == VQ_INT16_FIRST) check_integer_bound(2072.0f, isa + ", int16");  // of 500 dimensions
  }
  vq_cpu_use_first_pass(-1);
}

}  // namespace

int main(int argc, char** argv) {
  bool found = argc < 2;
  where = "choice";
  expect(vq_cpu_isa_automatic(vq_cpu_isa()), "instruction set", vq_cpu_isa());
  for (int isa = 0; isa < VQ_ISA_COUNT; ++isa) {
    const std::string name = vq_cpu_isa_name(isa);
    if (argc > 1 && name != argv[1]) continue;
    if (!vq_cpu_isa_compiled(isa) || !vq_cpu_isa_supported(isa) || vq_cpu_use_isa(isa) != 0) continue;
    found = true;
    const int before = failures, first = checks;
    check_rule(isa);
    check_roofs(isa);
    check_first_passes(name);
    if (isa == VQ_ISA_AMX) check_rows_of_passes(name);
    printf("%s: %d checks, %d wrong\n", name.c_str(), checks - first, failures - before);
  }
  if (!found) printf("%s: not compiled in, or not on this machine\n", argv[1]);
  return failures ? 1 : found ? 0 : 2;
}
