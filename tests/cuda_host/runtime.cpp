// Runs a grid on one host thread: fibers, barriers, warp exchanges, shared memory. See cuda_runtime.h.
#include <cuda_runtime.h>
#include <pybind11/pybind11.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

void bind_cuda(pybind11::module_& m);
int run_faulty(const float* in, float* out, int fault);  // faulty.cu
int cuda_host_tensor_core_block = 16;

long long cuda_host_float64_products = 0;

namespace cuda_host {
namespace {

constexpr size_t kStackBytes = 128 * 1024 + 64 * 576;
// Stacks lie whole pages apart: without an offset the tops of all of them would share a few lines of the cache.
constexpr size_t kStackOffset = 576;
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xff, kGuard = 0xa5;  // 0xffffffff is a NaN and the index -1

// --- switching stacks ------------------------------------------------------------------------------------

#ifdef __x86_64__
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_host_switch
.type cuda_host_switch, @function
cuda_host_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_host_switch, .-cuda_host_switch
)");

struct Context {
  void* stack_pointer = nullptr;

  void start(unsigned char* stack, size_t unused, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + kStackBytes - unused);
    *--top = nullptr;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_pointer = top;
  }
  void switch_to(const Context& other) { cuda_host_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
  ucontext_t context{};

  void start(unsigned char* stack, size_t unused, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes - unused;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(const Context& other) { swapcontext(&context, &other.context); }
};
#endif

// --- blocks ------------------------------------------------------------------------------------------------

enum class State : unsigned char { kReady, kBlockBarrier, kGroupBarrier, kGridBarrier, kWarp, kDone };

struct Copy {
  void* to;
  unsigned char bytes[16];
};

struct Fiber {
  Context context;
  Position position;
  struct Block* block = nullptr;
  unsigned number = 0;  // in the block
  std::vector<std::vector<Copy>> copies;  // groups; the last is open
};

struct Warp {
  unsigned mask = 0, arrived = 0, parity = 0;
  const char* what = "";
  Exchange slots[2];
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<State> states;  // of the fibers, side by side
  std::vector<Warp> warps;
  std::vector<unsigned char> shared;
  size_t shared_bytes = 0;
  size_t at_barrier = 0, done = 0;
  int64_t steps = 0;
};

struct Machine {
  int processors = 3, major = 9, minor = 0, shared_limit = 227 * 1024, device = 0;
  bool reverse = false;
  std::string error;
  int64_t launches = 0;
  int64_t steps = 0;  // of the block that took most, summed over launches
  std::vector<unsigned> blocks_launched;  // of each launch

  Context scheduler;
  Fiber* current = nullptr;
  size_t turn_block = 0, turn = 0;  // whose turn is next in this round over all fibers
  const std::function<void()>* thread = nullptr;
  std::vector<std::unique_ptr<unsigned char[]>> stacks;
  std::vector<std::unique_ptr<Block>> blocks;
  size_t at_grid_barrier = 0;
};

Machine machine;

int64_t host_steps = 0;

// The next fiber of this round that can run, which becomes the current one.
Fiber* next_ready() {
  for (; machine.turn_block < machine.blocks.size(); ++machine.turn_block, machine.turn = 0) {
    Block& b = *machine.blocks[machine.turn_block];
    const size_t threads = b.fibers.size();
    while (machine.turn < threads) {
      const size_t turn = machine.turn++;
      const size_t i = machine.reverse ? threads - 1 - turn : turn;
      if (b.states[i] != State::kReady) continue;
      block_steps = &b.steps;
      return machine.current = &b.fibers[i];
    }
  }
  return nullptr;
}

// Goes to the next fiber, without the scheduler in between but at the end of a round and after an error: most of
// the time of a launch went into switches.
void suspend(State state) {
  Fiber& me = *machine.current;
  me.block->states[me.number] = state;
  const Fiber* next = machine.error.empty() ? next_ready() : nullptr;
  if (next != &me) me.context.switch_to(next != nullptr ? next->context : machine.scheduler);
}

void release(Block& b, State from, size_t first, size_t end) {
  for (size_t i = first; i < end; ++i) {
    if (b.states[i] == from) b.states[i] = State::kReady;
  }
}

void fiber_main() {
  (*machine.thread)();
  ++machine.current->block->done;
  suspend(State::kDone);
}

unsigned char* aligned_shared(Block& b) {
  auto* p = b.shared.data();
  return p + (128 - reinterpret_cast<uintptr_t>(p) % 128) % 128;
}

void start_block(Block& b, const Launch& launch, dim3 index, size_t first_stack) {
  const unsigned threads = launch.block.x;
  b.fibers.resize(threads);
  b.states.assign(threads, State::kReady);
  b.warps.assign((threads + kWarpSize - 1) / kWarpSize, Warp{});
  b.shared_bytes = launch.shared_bytes;
  b.shared.assign(launch.shared_bytes + kGuardBytes, kPoison);
  std::fill(aligned_shared(b) + b.shared_bytes, b.shared.data() + b.shared.size(), kGuard);
  b.at_barrier = b.done = 0;
  b.steps = 0;
  while (machine.stacks.size() < first_stack + threads) {
    machine.stacks.emplace_back(new unsigned char[kStackBytes]);
  }
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    f.position = Position{dim3(i, 0, 0), index, launch.block, launch.grid};
    f.block = &b;
    f.number = i;
    f.copies.assign(1, {});
    f.context.start(machine.stacks[first_stack + i].get(), i % 64 * kStackOffset, fiber_main);
  }
}

void check_guard(Block& b) {
  const unsigned char* end = b.shared.data() + b.shared.size();
  for (const unsigned char* p = aligned_shared(b) + b.shared_bytes; p < end; ++p) {
    if (*p != kGuard) machine.error = "write past the end of dynamic shared memory";
  }
}

const char* stuck_message() {
  for (const auto& b : machine.blocks) {
    for (const Warp& w : b->warps) {
      if (w.arrived != 0) return "barrier divergence: a warp collective that not all its lanes reach";
    }
  }
  return "barrier divergence: a barrier that not all threads of the block reach";
}

// Runs the started blocks to their end; false if they fail or cannot go on.
bool run_blocks() {
  size_t total = 0, done = 0;
  for (const auto& b : machine.blocks) total += b->fibers.size();
  while (done < total) {
    machine.turn_block = machine.turn = 0;
    Fiber* first = next_ready();
    const bool progress = first != nullptr;
    if (progress) machine.scheduler.switch_to(first->context);
    if (!machine.error.empty()) return false;
    done = 0;
    for (const auto& b : machine.blocks) done += b->done;
    if (!progress && done < total) {
      machine.error = stuck_message();
      return false;
    }
  }
  for (const auto& b : machine.blocks) check_guard(*b);
  return machine.error.empty();
}

}  // namespace

int64_t* block_steps = &host_steps;

const Position& position() {
  return machine.current->position;
}
unsigned lane() {
  return machine.current->number % kWarpSize;
}
unsigned char* dynamic_shared() {
  return aligned_shared(*machine.current->block);
}

void fail(const char* message) {
  machine.error = message;
  for (;;) suspend(State::kDone);
}

void block_barrier() {
  Block& b = *machine.current->block;
  if (++b.at_barrier < b.fibers.size()) {
    suspend(State::kBlockBarrier);
    return;
  }
  b.at_barrier = 0;
  release(b, State::kBlockBarrier, 0, b.states.size());
  suspend(State::kReady);  // the last to arrive gets no head start
}

void group_barrier(unsigned threads) {
  Fiber& me = *machine.current;
  Block& b = *me.block;
  const unsigned first = me.number / threads * threads;
  unsigned waiting = 0;
  for (unsigned i = first; i < first + threads; ++i) waiting += b.states[i] == State::kGroupBarrier;
  if (waiting + 1 < threads) {
    suspend(State::kGroupBarrier);
    return;
  }
  release(b, State::kGroupBarrier, first, first + threads);
  suspend(State::kReady);
}

void yield() {
  suspend(State::kReady);
}

void grid_barrier() {
  size_t total = 0;
  for (const auto& b : machine.blocks) total += b->fibers.size();
  if (total != static_cast<size_t>(position().grid_size.x) * position().block_size.x) {
    fail("grid barrier in a launch that is not cooperative");
  }
  if (++machine.at_grid_barrier < total) {
    suspend(State::kGridBarrier);
    return;
  }
  machine.at_grid_barrier = 0;
  for (const auto& b : machine.blocks) release(*b, State::kGridBarrier, 0, b->states.size());
  suspend(State::kReady);
}

const Exchange& exchange(unsigned mask, const void* mine, size_t bytes, const char* what) {
  Fiber& me = *machine.current;
  Warp& w = me.block->warps[me.number / kWarpSize];
  const unsigned bit = 1u << lane();
  if ((mask & bit) == 0) fail("warp collective whose mask leaves the calling lane out");
  if (w.arrived == 0) {
    w.mask = mask;
    w.what = what;
  } else if (w.mask != mask || (w.what != what && std::strcmp(w.what, what) != 0)) {
    fail("warp divergence: lanes of a warp in different collectives");
  }
  Exchange& slots = w.slots[w.parity];
  if (bytes != 0) std::memcpy(slots[lane()], mine, bytes);
  w.arrived |= bit;
  if (w.arrived != w.mask) {
    suspend(State::kWarp);
    return slots;
  }
  // The other slots take the next exchange, which cannot end before all lanes have read these.
  w.arrived = 0;
  w.parity ^= 1;
  const size_t first = me.number / kWarpSize * kWarpSize;
  release(*me.block, State::kWarp, first, std::min(first + kWarpSize, me.block->states.size()));
  return slots;
}

void queue_copy(void* to, const void* from, size_t bytes) {
  Copy c{};
  c.to = to;
  std::memcpy(c.bytes, from, bytes);
  machine.current->copies.back().push_back(c);
}

void commit_copies() {
  machine.current->copies.emplace_back();
}

void finish_copies(int pending) {
  auto& groups = machine.current->copies;
  while (groups.size() > static_cast<size_t>(pending) + 1) {
    for (const Copy& c : groups.front()) std::memcpy(c.to, c.bytes, sizeof c.bytes);
    groups.erase(groups.begin());
  }
}

int run(const Launch& launch, const std::function<void()>& thread) {
  if (launch.block.x == 0 || launch.grid.x == 0 || launch.block.x > 1024) return cudaErrorInvalidValue;
  if (launch.shared_bytes > static_cast<size_t>(machine.shared_limit)) return cudaErrorInvalidValue;
  ++machine.launches;
  machine.error.clear();
  machine.thread = &thread;
  machine.at_grid_barrier = 0;
  const size_t together = launch.cooperative ? launch.grid.x : 1;
  const int resident = cuda_host_resident_blocks(static_cast<int>(launch.block.x), launch.shared_bytes);
  if (launch.cooperative && together > static_cast<size_t>(machine.processors * resident)) {
    return cudaErrorInvalidValue;
  }
  machine.blocks.clear();
  for (size_t i = 0; i < together; ++i) machine.blocks.push_back(std::make_unique<Block>());
  machine.blocks_launched.push_back(launch.grid.x);
  int64_t most = 0;
  for (unsigned first = 0; first < launch.grid.x; first += static_cast<unsigned>(together)) {
    for (size_t i = 0; i < together; ++i) {
      const unsigned ahead = first + static_cast<unsigned>(i);
      const unsigned index = machine.reverse ? launch.grid.x - 1 - ahead : ahead;
      start_block(*machine.blocks[i], launch, dim3(index, 0, 0), i * launch.block.x);
    }
    const bool finished = run_blocks();
    block_steps = &host_steps;
    if (!finished) return cudaErrorLaunchFailure;
    for (const auto& b : machine.blocks) most = std::max(most, b->steps);
  }
  machine.steps += most;
  return cudaSuccess;
}

}  // namespace cuda_host

using cuda_host::machine;

cudaError_t cudaGetDevice(int* device) {
  *device = machine.device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  machine.device = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = machine.processors;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = machine.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = machine.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = machine.shared_limit;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? "cudaErrorLaunchFailure" : "cudaErrorInvalidValue";
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorLaunchFailure ? machine.error.c_str() : "invalid argument";
}
void cuda_host_count_launch() {
  ++machine.launches;
}
// As if a multiprocessor had 1 KiB more than a block may take, of which each block wants 1 KiB for the system, room for
// 2,048 threads, and registers without end.
int cuda_host_resident_blocks(int threads, size_t shared_bytes) {
  const size_t by_memory = (static_cast<size_t>(machine.shared_limit) + 1024) / (shared_bytes + 1024);
  return std::min(2048 / threads, static_cast<int>(by_memory));
}
cudaError_t cuda_host_shared_limit(int bytes) {
  return bytes <= machine.shared_limit ? cudaSuccess : cudaErrorInvalidValue;
}

PYBIND11_MODULE(vq_cuda_host, m) {
  bind_cuda(m);
  m.def("configure", [](bool reverse, int major, int shared_limit, int processors) {
    machine.reverse = reverse;
    machine.major = major;
    machine.shared_limit = shared_limit;
    machine.processors = processors;
  });
  m.def("launches", [] { return machine.launches; });
  m.def("steps", [] { return machine.steps; });
  m.def("blocks_launched", [] {
    pybind11::list blocks;
    for (const unsigned n : machine.blocks_launched) blocks.append(n);
    machine.blocks_launched.clear();
    return blocks;
  });
  m.def("float64_products", [] { return cuda_host_float64_products; });
  m.def("set_tensor_core_block", [](int products) { cuda_host_tensor_core_block = products; });
  m.def("run_faulty", [](uintptr_t in, uintptr_t out, int fault) {
    const int error = run_faulty(reinterpret_cast<const float*>(in), reinterpret_cast<float*>(out), fault);
    if (error != cudaSuccess) throw std::runtime_error(machine.error);
  });
}
