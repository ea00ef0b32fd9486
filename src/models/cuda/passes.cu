// Passes over an activation that replace two or three of the tensor library's, in place. Eight numbers to a thread:
// 16 bytes of bf16, 32 of f32. The caller sees to it that a row is a multiple of eight.
#include <cuda_bf16.h>
#include <stdint.h>

constexpr unsigned LANES = 8;

template <typename T>
struct alignas(sizeof(T) * LANES) Pack {
    T values[LANES];
};

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
template <typename T> __device__ __forceinline__ T narrow(float x);
template <> __device__ __forceinline__ float narrow<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) { return __float2bfloat16(x); }

struct Sum {
    static __device__ __forceinline__ float of(float x, float term) { return x + term; }
};

// The exact GELU of the sum: x/2 * (1 + erf(x / sqrt 2)).
struct GeluOfSum {
    static __device__ __forceinline__ float of(float x, float term) {
        const float y = x + term;
        return 0.5f * y * (1.0f + erff(y * 0.70710678118654752f));
    }
};

// x[i] <- F(x[i], term[i mod period]), for `packs` times eight numbers; `period` is in packs.
template <typename T, typename F>
__device__ __forceinline__ void pass(T *x, const T *term, uint64_t packs, uint64_t period) {
    Pack<T> *const rows = reinterpret_cast<Pack<T> *>(x);
    const Pack<T> *const terms = reinterpret_cast<const Pack<T> *>(term);
    const uint64_t stride = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
        Pack<T> pack = rows[i];
        const Pack<T> added = terms[i % period];
#pragma unroll
        for (unsigned lane = 0; lane < LANES; ++lane) {
            pack.values[lane] = narrow<T>(F::of(widen(pack.values[lane]), widen(added.values[lane])));
        }
        rows[i] = pack;
    }
}

#define PASS(name, T, F)                                                                          \
    extern "C" __global__ void name(T *x, const T *term, uint64_t packs, uint64_t period) {       \
        pass<T, F>(x, term, packs, period);                                                       \
    }

PASS(add_f32, float, Sum)
PASS(add_bf16, __nv_bfloat16, Sum)
PASS(bias_gelu_f32, float, GeluOfSum)
PASS(bias_gelu_bf16, __nv_bfloat16, GeluOfSum)
