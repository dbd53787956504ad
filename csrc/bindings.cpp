// The one door: the pybind11 module vq_kernels._C. Python checks every tensor and passes addresses,
// sizes and strides; nothing here knows torch.
#include "bindings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <string>

#include "cpu/vq_cpu.h"

namespace py = pybind11;
using namespace vq_bindings;

#ifdef VQ_WITH_CUDA
void bind_cuda(py::module_& m);  // csrc/cuda
#endif

namespace {

// kernel() while other threads of Python run.
template <class Kernel>
void run(Kernel kernel) {
  int status;
  {
    const py::gil_scoped_release release;
    status = kernel();
  }
  if (status == VQ_OUT_OF_MEMORY) throw std::bad_alloc();
  if (status == VQ_INTERRUPTED) throw py::error_already_set();
}

// Runs the handlers of signals that have arrived; whether one of them raised an exception, as that of Ctrl-C
// does. Only Python's main thread runs handlers: others do not wait for the interpreter's lock to learn so.
int handle_signals() {
  static thread_local pid_t process_of_worker = 0;  // a thread that forks is the main one of the new process
  if (process_of_worker == getpid()) return 0;
  const py::gil_scoped_acquire acquire;
  try {
    const py::object main_thread = py::module_::import("threading").attr("main_thread")();
    if (main_thread.attr("ident").cast<unsigned long>() != PyThread_get_thread_ident()) {
      process_of_worker = getpid();
      return 0;
    }
  } catch (py::error_already_set& error) {
    error.restore();
    return 1;
  }
  return PyErr_CheckSignals() != 0;
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

std::string usable_first_passes() {
  std::string names;
  for (int pass = 0; pass < VQ_FIRST_PASS_COUNT; ++pass)
    if (vq_cpu_first_pass_usable(pass))
      names += (names.empty() ? "" : ", ") + std::string(vq_cpu_first_pass_name(pass));
  return names;
}

void use_first_pass(const std::string& name) {
  int chosen = name.empty() ? -1 : VQ_FIRST_PASS_COUNT;
  for (int pass = 0; pass < VQ_FIRST_PASS_COUNT; ++pass)
    if (name == vq_cpu_first_pass_name(pass)) chosen = pass;
  if (chosen < VQ_FIRST_PASS_COUNT && vq_cpu_use_first_pass(chosen) == 0) return;
  throw py::value_error("VQ_FIRST_PASS is '" + name + "'; accepted with " + vq_cpu_isa_name(vq_cpu_isa()) + ": " +
                        usable_first_passes());
}

// VQ_ISA and VQ_FIRST_PASS are read at every call, so that a test can change them; they are parsed only when
// one has changed.
void follow_environment() {
  static std::mutex guard;
  static std::string seen_isa, seen_pass;
  const char *isa = std::getenv("VQ_ISA"), *pass = std::getenv("VQ_FIRST_PASS");
  const std::string wanted_isa = isa ? isa : "", wanted_pass = pass ? pass : "";
  const std::lock_guard<std::mutex> lock(guard);
  if (wanted_isa == seen_isa && wanted_pass == seen_pass) return;
  try {
    use_isa(wanted_isa);
    use_first_pass(wanted_pass);
  } catch (const py::value_error&) {  // neither of them counts
    use_isa(seen_isa);
    use_first_pass(seen_pass);
    throw;
  }
  seen_isa = wanted_isa;
  seen_pass = wanted_pass;
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
  py::list passes;
  for (int pass = 0; pass < VQ_FIRST_PASS_COUNT; ++pass)
    if (vq_cpu_first_pass_usable(pass)) passes.append(vq_cpu_first_pass_name(pass));
  features["first_passes"] = passes;
  return features;
}

int64_t peak(const std::string& pass, int threads, int64_t rounds) {
  follow_environment();
  for (int p = 0; p < VQ_FIRST_PASS_COUNT; ++p)
    if (pass == vq_cpu_first_pass_name(p)) {
      const py::gil_scoped_release release;
      return vq_cpu_peak(p, threads, rounds);
    }
  throw py::value_error("pass is '" + pass + "'; accepted: " + usable_first_passes());
}

std::string first_pass(const py::tuple& x, const py::tuple& codebook) {
  follow_environment();
  const VqRows rows = rows_from(x);
  return vq_cpu_first_pass_name(vq_cpu_first_pass(&rows, codes_from(codebook).count));
}

// What Python holds of a codebook that was prepared once for many searches.
struct PreparedCodebook {
  struct Release {
    void operator()(VqPreparedCodebook* prepared) const { vq_cpu_release_codebook(prepared); }
  };
  std::unique_ptr<VqPreparedCodebook, Release> prepared;
};

PreparedCodebook prepare_codebook(const py::tuple& codebook, const py::tuple& options, int threads) {
  follow_environment();
  const VqCodes codes = codes_from(codebook);
  const VqSearchOptions search = search_options_from(options);
  VqPreparedCodebook* prepared = nullptr;
  run([&] { return vq_cpu_prepare_codebook(&codes, &search, threads, &prepared); });
  return PreparedCodebook{std::unique_ptr<VqPreparedCodebook, PreparedCodebook::Release>(prepared)};
}

VqPreparedCodebook* handle(PreparedCodebook* prepared) { return prepared ? prepared->prepared.get() : nullptr; }

// prepared null: none.
void nearest_code(const py::tuple& x, const py::tuple& codebook, PreparedCodebook* prepared, const py::tuple& options,
                  int threads, uintptr_t indices) {
  follow_environment();
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  const VqSearchOptions search = search_options_from(options);
  run([&] {
    return vq_cpu_nearest_code(&rows, &codes, handle(prepared), &search, threads,
                               pointer<int64_t>(indices));
  });
}

void gather_codes(const py::tuple& codebook, uintptr_t indices, const py::tuple& quantized, int threads) {
  follow_environment();
  const VqRows rows = rows_from(quantized);
  const VqCodes codes = codes_from(codebook);
  run([&] { return vq_cpu_gather_codes(&codes, pointer<int64_t>(indices), &rows, threads); });
}

void code_statistics(const py::tuple& x, uintptr_t indices, int64_t codes, bool skip_nonfinite, int threads,
                     uintptr_t counts, uintptr_t sums) {
  follow_environment();
  const VqRows rows = rows_from(x);
  run([&] {
    return vq_cpu_code_statistics(&rows, pointer<int64_t>(indices), codes, skip_nonfinite, threads,
                                  pointer<int64_t>(counts), pointer<float>(sums));
  });
}

void ema_update(uintptr_t codebook, uintptr_t cluster_size, uintptr_t embed_avg, uintptr_t counts,
                bool counts_are_float, uintptr_t sums, int64_t codes, int64_t dim, double one_minus_decay,
                double eps, bool normalize, int threads) {
  follow_environment();
  run([&] {
    return vq_cpu_ema_update(pointer<float>(codebook), pointer<float>(cluster_size),
                             pointer<float>(embed_avg), pointer<void>(counts), counts_are_float,
                             pointer<float>(sums), codes, dim, one_minus_decay, eps, normalize, threads);
  });
}

// prepared null, mask 0: none.
void vector_quantize(const py::tuple& x, const py::tuple& codebook, PreparedCodebook* prepared, uintptr_t mask,
                     const py::tuple& options, int threads, const py::tuple& result) {
  follow_environment();
  const VqRows rows = rows_from(x);
  const VqCodes codes = codes_from(codebook);
  const VqQuantizeOptions quantize = quantize_options_from(options);
  const VqQuantizeResult outputs = quantize_result_from(result);
  run([&] {
    return vq_cpu_vector_quantize(&rows, &codes, handle(prepared), pointer<uint8_t>(mask),
                                  &quantize, threads, &outputs);
  });
}

void vector_quantize_backward(const std::optional<py::tuple>& grad_quantized, std::optional<float> loss_grad,
                              const py::tuple& x, const py::tuple& codebook, uintptr_t indices, int gradient,
                              int threads, const py::tuple& grad_x) {
  follow_environment();
  const VqRows rows = rows_from(x), out = rows_from(grad_x);
  const VqRows grad = grad_quantized ? rows_from(*grad_quantized) : VqRows();
  const VqCodes codes = codes_from(codebook);
  run([&] {
    return vq_cpu_vector_quantize_backward(grad_quantized ? &grad : nullptr,
                                           loss_grad ? &*loss_grad : nullptr, &rows, &codes,
                                           pointer<int64_t>(indices), gradient, threads, &out);
  });
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of vq_kernels";
  vq_cpu_on_stop_requested(&handle_signals);
  m.def("cpu_features", &cpu_features,
        "Instruction sets: of the machine, compiled in, and the one used (VQ_ISA overrides); first passes it has.");
  m.def("peak", &peak, "Operations done by rounds of multiply-adds in registers, 0 without such instructions.");
  m.def("first_pass", &first_pass, "The pass a search begins with (VQ_FIRST_PASS overrides the rule).");
  py::class_<PreparedCodebook>(m, "PreparedCodebook");
  m.def("prepare_codebook", &prepare_codebook, "Packs a codebook, whose memory must stay, for many searches.");
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
