// The one door: the pybind11 module vq_kernels._C. Python checks every tensor and passes addresses,
// sizes and strides; nothing here knows torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <mutex>
#include <new>
#include <optional>
#include <string>

#include "cpu/vq_cpu.h"

namespace py = pybind11;

#ifdef VQ_WITH_CUDA
void bind_cuda(py::module_& m);  // csrc/cuda
#endif

namespace {

// (address, dtype, b, m, d, stride_b, stride_m, stride_d)
VqRows rows(const py::tuple& t) {
  return {reinterpret_cast<void*>(t[0].cast<uintptr_t>()),
          t[2].cast<int64_t>(),
          t[3].cast<int64_t>(),
          t[4].cast<int64_t>(),
          t[5].cast<int64_t>(),
          t[6].cast<int64_t>(),
          t[7].cast<int64_t>(),
          t[1].cast<int32_t>()};
}

// (address, dtype, k, d)
VqCodes codes(const py::tuple& t) {
  return {reinterpret_cast<void*>(t[0].cast<uintptr_t>()), t[2].cast<int64_t>(), t[3].cast<int64_t>(),
          t[1].cast<int32_t>()};
}

template <class T>
T* address(uintptr_t p) {
  return reinterpret_cast<T*>(p);
}

void check(int status) {
  if (status == VQ_OUT_OF_MEMORY) throw std::bad_alloc();
}

std::string usable_isas() {
  std::string names;
  for (int isa = 0; isa < VQ_ISA_COUNT; ++isa)
    if (vq_cpu_isa_compiled(isa) && vq_cpu_isa_supported(isa))
      names += (names.empty() ? "" : ", ") + std::string(vq_cpu_isa_name(isa));
  return names;
}

void use_isa(const std::string& name) {
  if (name.empty()) {
    vq_cpu_use_isa(-1);
    return;
  }
  for (int isa = 0; isa < VQ_ISA_COUNT; ++isa) {
    if (name != vq_cpu_isa_name(isa)) continue;
    if (vq_cpu_use_isa(isa) == 0) return;
    const char* why = vq_cpu_isa_compiled(isa) ? "this machine does not have it" : "it was not compiled in";
    throw py::value_error("VQ_ISA is '" + name + "', but " + why + "; accepted here: " + usable_isas());
  }
  throw py::value_error("VQ_ISA is '" + name + "'; accepted here: " + usable_isas());
}

// VQ_ISA is read at every call, so that a test can change it; it is parsed only when it has changed.
void follow_environment() {
  static std::mutex guard;
  static std::string seen;
  const char* value = std::getenv("VQ_ISA");
  const std::string wanted = value ? value : "";
  const std::lock_guard<std::mutex> lock(guard);
  if (wanted == seen) return;
  use_isa(wanted);
  seen = wanted;
}

py::dict cpu_features() {
  follow_environment();
  py::list has, compiled;
  for (int isa = 0; isa < VQ_ISA_COUNT; ++isa) {
    if (vq_cpu_isa_supported(isa)) has.append(vq_cpu_isa_name(isa));
    if (vq_cpu_isa_compiled(isa)) compiled.append(vq_cpu_isa_name(isa));
  }
  py::dict features;
  features["machine"] = has;
  features["compiled"] = compiled;
  features["used"] = vq_cpu_isa_name(vq_cpu_isa());
  return features;
}

void nearest_code(const py::tuple& x, const py::tuple& codebook, int metric, int precision, int threads,
                  uintptr_t indices) {
  follow_environment();
  const VqRows r = rows(x);
  const VqCodes c = codes(codebook);
  const py::gil_scoped_release release;
  check(vq_cpu_nearest_code(&r, &c, metric, precision, threads, address<int64_t>(indices)));
}

void gather_codes(const py::tuple& codebook, uintptr_t indices, const py::tuple& out, int threads) {
  follow_environment();
  const VqRows r = rows(out);
  const VqCodes c = codes(codebook);
  const py::gil_scoped_release release;
  check(vq_cpu_gather_codes(&c, address<int64_t>(indices), &r, threads));
}

void code_statistics(const py::tuple& x, uintptr_t indices, int64_t k, bool skip_nonfinite, int threads,
                     uintptr_t counts, uintptr_t sums) {
  follow_environment();
  const VqRows r = rows(x);
  const py::gil_scoped_release release;
  check(vq_cpu_code_statistics(&r, address<int64_t>(indices), k, skip_nonfinite, threads,
                               address<int64_t>(counts), address<float>(sums)));
}

void ema_update(uintptr_t codebook, uintptr_t cluster_size, uintptr_t embed_avg, uintptr_t counts,
                bool float_counts, uintptr_t sums, int64_t k, int64_t d, double weight, double eps,
                bool normalize, int threads) {
  follow_environment();
  const py::gil_scoped_release release;
  check(vq_cpu_ema_update(address<float>(codebook), address<float>(cluster_size), address<float>(embed_avg),
                          address<void>(counts), float_counts, address<float>(sums), k, d, weight, eps,
                          normalize, threads));
}

// Address 0: no mask, no statistics.
void vector_quantize(const py::tuple& x, const py::tuple& codebook, uintptr_t mask, int metric, int precision,
                     int threads, const py::tuple& out, uintptr_t indices, uintptr_t mse, uintptr_t valid_rows,
                     uintptr_t counts, uintptr_t sums) {
  follow_environment();
  const VqRows r = rows(x), o = rows(out);
  const VqCodes c = codes(codebook);
  const py::gil_scoped_release release;
  check(vq_cpu_vector_quantize(&r, &c, address<uint8_t>(mask), metric, precision, threads, &o,
                               address<int64_t>(indices), address<float>(mse), address<int64_t>(valid_rows),
                               address<int64_t>(counts), address<float>(sums)));
}

void vector_quantize_backward(const std::optional<py::tuple>& grad, const py::tuple& x,
                              const py::tuple& codebook, uintptr_t indices, std::optional<float> pull,
                              int gradient, int threads, const py::tuple& out) {
  follow_environment();
  const VqRows r = rows(x), o = rows(out);
  const VqRows g = grad ? rows(*grad) : VqRows();
  const VqCodes c = codes(codebook);
  const py::gil_scoped_release release;
  check(vq_cpu_vector_quantize_backward(grad ? &g : nullptr, &r, &c, address<int64_t>(indices),
                                        pull.value_or(0.0f), pull.has_value(), gradient, threads, &o));
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of vq_kernels";
  m.def("cpu_features", &cpu_features,
        "Instruction sets: of the machine, compiled in, and the one used (VQ_ISA overrides).");
  m.def("_scale_bound", &vq_cpu_scale_bound, "For tests: multiplies the error bounds of exact search.");
  m.def("nearest_code", &nearest_code);
  m.def("gather_codes", &gather_codes);
  m.def("code_statistics", &code_statistics);
  m.def("ema_update", &ema_update);
  m.def("vector_quantize", &vector_quantize);
  m.def("vector_quantize_backward", &vector_quantize_backward);
#ifdef VQ_WITH_CUDA
  bind_cuda(m);
#endif
}
