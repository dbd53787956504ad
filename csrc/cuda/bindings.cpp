// Python's door to the CUDA kernels: vq_kernels._C.cuda. Pointers come as integers; the Python side has
// checked every tensor. Rows are tuples (pointer, dtype, batches, rows, dim, and the three strides).
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "vq_cuda.h"

namespace py = pybind11;

namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);  // NOLINT: an address that Python got from a tensor
}

VqCudaRows rows_from(const py::tuple& t) {
  const auto at = [&](size_t i) { return t[i].cast<int64_t>(); };
  return VqCudaRows{pointer<void>(t[0].cast<uintptr_t>()),
                    static_cast<int>(at(1)),
                    at(2),
                    at(3),
                    at(4),
                    at(5),
                    at(6),
                    at(7)};
}

VqCudaCodes codes_from(const py::tuple& t) {
  return VqCudaCodes{pointer<const void>(t[0].cast<uintptr_t>()), t[1].cast<int>(), t[2].cast<int64_t>(),
                     t[3].cast<int64_t>()};
}

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
  const VqCudaRows rows = rows_from(x);
  const VqCudaCodes codes = codes_from(codebook);
  int64_t bytes = 0;
  check(vq_cuda_search_workspace(&rows, &codes, precision, fused, statistics, device, &bytes),
        "search_workspace");
  return bytes;
}

void nearest_code(const py::tuple& x, const py::tuple& codebook, int metric, int precision, uintptr_t indices,
                  uintptr_t workspace, int64_t workspace_bytes, int device, uintptr_t stream) {
  const VqCudaRows rows = rows_from(x);
  const VqCudaCodes codes = codes_from(codebook);
  check(vq_cuda_nearest_code(&rows, &codes, metric, precision, pointer<int64_t>(indices),
                             pointer<void>(workspace), workspace_bytes, stream_from(device, stream)),
        "nearest_code");
}

void vector_quantize(const py::tuple& x, const py::tuple& codebook, int metric, int precision,
                     uintptr_t indices, const py::tuple& out, uintptr_t mask, uintptr_t mse,
                     uintptr_t valid_rows, uintptr_t counts, uintptr_t sums, uintptr_t workspace,
                     int64_t workspace_bytes, int device, uintptr_t stream) {
  const VqCudaRows rows = rows_from(x), out_rows = rows_from(out);
  const VqCudaCodes codes = codes_from(codebook);
  const VqCudaOutputs outputs{&out_rows,
                              pointer<const uint8_t>(mask),
                              pointer<float>(mse),
                              pointer<int64_t>(valid_rows),
                              pointer<int64_t>(counts),
                              pointer<float>(sums)};
  check(vq_cuda_vector_quantize(&rows, &codes, metric, precision, pointer<int64_t>(indices), &outputs,
                                pointer<void>(workspace), workspace_bytes, stream_from(device, stream)),
        "vector_quantize");
}

void gather_codes(const py::tuple& codebook, uintptr_t indices, const py::tuple& out, int device,
                  uintptr_t stream) {
  const VqCudaCodes codes = codes_from(codebook);
  const VqCudaRows rows = rows_from(out);
  check(vq_cuda_gather_codes(&codes, pointer<const int64_t>(indices), &rows, stream_from(device, stream)),
        "gather_codes");
}

void code_statistics(const py::tuple& x, uintptr_t indices, int64_t codes, bool skip_nonfinite,
                     uintptr_t counts, uintptr_t sums, uintptr_t workspace, int64_t workspace_bytes,
                     int device, uintptr_t stream) {
  const VqCudaRows rows = rows_from(x);
  check(vq_cuda_code_statistics(&rows, pointer<const int64_t>(indices), codes, skip_nonfinite,
                                pointer<int64_t>(counts), pointer<float>(sums), pointer<void>(workspace),
                                workspace_bytes, stream_from(device, stream)),
        "code_statistics");
}

void ema_update(uintptr_t codebook, uintptr_t cluster_size, uintptr_t embed_avg, uintptr_t counts,
                bool counts_are_float, uintptr_t sums, int64_t codes, int64_t dim, double decay_complement,
                double eps, bool normalize, uintptr_t workspace, int64_t workspace_bytes, int device,
                uintptr_t stream) {
  check(vq_cuda_ema_update(pointer<float>(codebook), pointer<float>(cluster_size), pointer<float>(embed_avg),
                           pointer<const void>(counts), counts_are_float, pointer<const float>(sums), codes,
                           dim, static_cast<float>(decay_complement), static_cast<float>(eps), normalize,
                           pointer<void>(workspace), workspace_bytes, stream_from(device, stream)),
        "ema_update_");
}

void backward(const py::object& grad_quantized, uintptr_t grad_loss, const py::tuple& x,
              const py::tuple& codebook, uintptr_t indices, uintptr_t valid_rows, double scale, bool rotation,
              const py::tuple& out, int device, uintptr_t stream) {
  const VqCudaRows rows = rows_from(x), out_rows = rows_from(out);
  const VqCudaCodes codes = codes_from(codebook);
  VqCudaRows grad{};
  const bool has_grad = !grad_quantized.is_none();
  if (has_grad) grad = rows_from(grad_quantized.cast<py::tuple>());
  check(vq_cuda_backward(has_grad ? &grad : nullptr, pointer<const float>(grad_loss), &rows, &codes,
                         pointer<const int64_t>(indices), pointer<const int64_t>(valid_rows),
                         static_cast<float>(scale), rotation, &out_rows, stream_from(device, stream)),
        "vector_quantize_backward");
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
  cuda.def("nearest_code", &nearest_code);
  cuda.def("vector_quantize", &vector_quantize);
  cuda.def("gather_codes", &gather_codes);
  cuda.def("statistics_workspace", &vq_cuda_statistics_workspace);
  cuda.def("code_statistics", &code_statistics);
  cuda.def("ema_workspace", &vq_cuda_ema_workspace);
  cuda.def("ema_update", &ema_update);
  cuda.def("backward", &backward);
  cuda.def("capability", &capability);
}
