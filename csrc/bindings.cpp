// The one door: the pybind11 module vq_kernels._C.
#include <pybind11/pybind11.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of vq_kernels";
  m.def("build_flags", [] {
    pybind11::dict flags;
#ifdef VQ_HAVE_AVX512
    flags["avx512"] = true;
#endif
    return flags;
  });
}
