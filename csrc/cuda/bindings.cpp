// Python's door to the CUDA kernels: vq_kernels._C.cuda. The Python side has checked every tensor.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "vq_cuda.h"

namespace py = pybind11;
using namespace vq_bindings;

namespace {

VqCudaStream stream_from(int device, uintptr_t stream) {
  return VqCudaStream{device, pointer<void>(stream)};
}

void check(int error, const char* operation) {
  if (error == 0) return;
  throw std::runtime_error(std::string(operation) + ": " + vq_cuda_error_name(error) + ": " +
                           vq_cuda_error_text(error));
}

int64_t search_workspace(const py::tuple& x, const py::tuple& codebook, int precision, bool fused,
                         bool statistics, int device) {
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  int64_t bytes = 0;
  check(vq_cuda_search_workspace(&rows, &codes, precision, fused, statistics, device, &bytes),
        "search_workspace");
  return bytes;
}

int64_t open_counts(const py::tuple& x, const py::tuple& codebook, int precision, bool fused, bool statistics,
                    int device) {
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  int64_t bytes = 0;
  check(vq_cuda_open_counts(&rows, &codes, precision, fused, statistics, device, &bytes), "open_counts");
  return bytes;
}

void nearest_code(const py::tuple& x, const py::tuple& codebook, const py::tuple& options, uintptr_t indices,
                  uintptr_t workspace, int64_t workspace_bytes, int device, uintptr_t stream) {
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  const VqSearchOptions search = search_options_from(options);
  check(vq_cuda_nearest_code(&rows, &codes, &search, pointer<int64_t>(indices), pointer<void>(workspace),
                             workspace_bytes, stream_from(device, stream)),
        "nearest_code");
}

void vector_quantize(const py::tuple& x, const py::tuple& codebook, uintptr_t mask, const py::tuple& options,
                     const py::tuple& result, uintptr_t workspace, int64_t workspace_bytes, int device,
                     uintptr_t stream) {
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  const VqQuantizeOptions quantize = quantize_options_from(options);
  const VqQuantizeResult outputs = quantize_result_from(result);
  check(vq_cuda_vector_quantize(&rows, &codes, pointer<const uint8_t>(mask), &quantize, &outputs,
                                pointer<void>(workspace), workspace_bytes, stream_from(device, stream)),
        "vector_quantize");
}

void gather_codes(const py::tuple& codebook, uintptr_t indices, const py::tuple& quantized, int device,
                  uintptr_t stream) {
  const VqCodes codes = codes_from(codebook);
  const VqRows rows = rows_from(quantized);
  check(vq_cuda_gather_codes(&codes, pointer<const int64_t>(indices), &rows, stream_from(device, stream)),
        "gather_codes");
}

void code_statistics(const py::tuple& x, uintptr_t indices, int64_t codes, bool skip_nonfinite,
                     uintptr_t counts, uintptr_t sums, uintptr_t workspace, int64_t workspace_bytes,
                     int device, uintptr_t stream) {
  const VqRows rows = rows_from(x);
  check(vq_cuda_code_statistics(&rows, pointer<const int64_t>(indices), codes, skip_nonfinite,
                                pointer<int64_t>(counts), pointer<float>(sums), pointer<void>(workspace),
                                workspace_bytes, stream_from(device, stream)),
        "code_statistics");
}

void ema_update(uintptr_t codebook, uintptr_t cluster_size, uintptr_t embed_avg, uintptr_t counts,
                bool counts_are_float, uintptr_t sums, int64_t codes, int64_t dim, double one_minus_decay,
                double eps, bool normalize, uintptr_t workspace, int64_t workspace_bytes, int device,
                uintptr_t stream) {
  check(vq_cuda_ema_update(pointer<float>(codebook), pointer<float>(cluster_size), pointer<float>(embed_avg),
                           pointer<const void>(counts), counts_are_float, pointer<const float>(sums), codes,
                           dim, static_cast<float>(one_minus_decay), static_cast<float>(eps), normalize,
                           pointer<void>(workspace), workspace_bytes, stream_from(device, stream)),
        "ema_update_");
}

void vector_quantize_backward(const std::optional<py::tuple>& grad_quantized, uintptr_t grad_loss,
                              const py::tuple& x, const py::tuple& codebook, uintptr_t indices,
                              uintptr_t valid_rows, double scale, int gradient, const py::tuple& grad_x,
                              int device, uintptr_t stream) {
  const VqRows rows = rows_from(x), out = rows_from(grad_x);
  const VqRows grad = grad_quantized ? rows_from(*grad_quantized) : VqRows{};
  const VqCodes codes = codes_from(codebook);
  check(vq_cuda_vector_quantize_backward(grad_quantized ? &grad : nullptr, pointer<const float>(grad_loss),
                                         &rows, &codes, pointer<const int64_t>(indices),
                                         pointer<const int64_t>(valid_rows), static_cast<float>(scale),
                                         gradient, &out, stream_from(device, stream)),
        "vector_quantize_backward");
}

void hopper_search(const py::tuple& x, const py::tuple& codes, const py::tuple& options, const py::tuple& bound,
                   const py::tuple& outputs, int device, uintptr_t stream) {
  const VqRows rows = rows_from(x);
  const auto address = [](const py::tuple& from, size_t i) { return from[i].cast<uintptr_t>(); };
  VqHopperSearch s = {};
  s.tiles = pointer<const void>(address(codes, 0));
  s.bias = pointer<const float>(address(codes, 1));
  s.centre = pointer<const float>(address(codes, 2));
  s.extremes = pointer<const float>(address(codes, 3));
  s.lines = codes[4].cast<int64_t>();
  s.codes = codes[5].cast<int64_t>();
  s.padded_codes = codes[6].cast<int64_t>();
  s.depth = codes[7].cast<int64_t>();
  s.split = options[0].cast<bool>();
  s.centred = options[1].cast<bool>();
  s.metric = options[2].cast<bool>() ? VQ_L2 : VQ_COSINE;
  s.exact = options[3].cast<bool>();
  s.accumulation = bound[0].cast<double>();
  s.contract = bound[1].cast<double>();
  s.slack = bound[2].cast<double>();
  s.bound_scale = bound[3].cast<double>();
  s.mask = pointer<const uint8_t>(address(outputs, 0));
  s.open_count = pointer<int64_t>(address(outputs, 1));
  s.range = pointer<int64_t>(address(outputs, 2));
  s.indices = pointer<int64_t>(address(outputs, 3));
  s.open_rows = pointer<int32_t>(address(outputs, 4));
  s.ceiling = pointer<float>(address(outputs, 5));
  check(vq_cuda_hopper_search(&rows, &s, stream_from(device, stream)), "hopper_search");
}

py::tuple capability(int device) {
  int major = 0, minor = 0;
  check(vq_cuda_device_capability(device, &major, &minor), "capability");
  return py::make_tuple(major, minor);
}

}  // namespace

void bind_cuda(py::module_& m) {
  py::module_ cuda = m.def_submodule("cuda", "CUDA C++ kernels");
  cuda.def("search_workspace", &search_workspace);
  cuda.def("open_counts", &open_counts);
  cuda.def("nearest_code", &nearest_code);
  cuda.def("vector_quantize", &vector_quantize);
  cuda.def("gather_codes", &gather_codes);
  cuda.def("statistics_workspace", &vq_cuda_statistics_workspace);
  cuda.def("code_statistics", &code_statistics);
  cuda.def("ema_workspace", &vq_cuda_ema_workspace);
  cuda.def("ema_update", &ema_update);
  cuda.def("vector_quantize_backward", &vector_quantize_backward);
  cuda.def("hopper_search", &hopper_search);
  cuda.def("capability", &capability);
}
