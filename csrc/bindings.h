// Tuples that Python passes as the structs of vq_types.h, for the CPU's bindings and for CUDA's.
// vq_kernels/backends/marshal.py makes them; every tensor was checked there or before.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "vq_types.h"

namespace vq_bindings {

namespace py = pybind11;

// Address 0 is null.
template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT: an address that Python got from a tensor
}

template <typename T>
T* pointer(const py::handle& address) {
  return pointer<T>(address.cast<uintptr_t>());
}

// (address, dtype, batches, rows, dim, stride_batch, stride_row, stride_dim)
inline VqRows rows_from(const py::tuple& t) {
  const auto at = [&](size_t i) { return t[i].cast<int64_t>(); };
  return VqRows{pointer<void>(t[0]), at(2), at(3), at(4), at(5), at(6), at(7), t[1].cast<int32_t>()};
}

// (address, dtype, count, dim)
inline VqCodes codes_from(const py::tuple& t) {
  return VqCodes{pointer<const void>(t[0]), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
                 t[1].cast<int32_t>()};
}

// (metric, precision, bound_scale)
inline VqSearchOptions search_options_from(const py::tuple& t) {
  return VqSearchOptions{t[0].cast<int32_t>(), t[1].cast<int32_t>(), t[2].cast<double>()};
}

// (metric, precision, bound_scale, QuantizeOptions)
inline VqQuantizeOptions quantize_options_from(const py::tuple& t) {
  VqQuantizeOptions options = {};
  options.search = search_options_from(t);
#define VQ_READ(type, name) options.name = t[3].attr(#name).cast<type>();
  VQ_QUANTIZE_OPTIONS(VQ_READ)
#undef VQ_READ
  return options;
}

// (quantized rows, indices, loss, valid_rows, counts, sums, codebook_copy)
inline VqQuantizeResult quantize_result_from(const py::tuple& t) {
  return VqQuantizeResult{rows_from(t[0]),        pointer<int64_t>(t[1]), pointer<float>(t[2]),
                          pointer<int64_t>(t[3]), pointer<int64_t>(t[4]), pointer<float>(t[5]),
                          pointer<void>(t[6])};
}

}  // namespace vq_bindings
