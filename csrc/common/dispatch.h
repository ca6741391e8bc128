// From a dtype known at run time to a type known to the compiler, by a generic lambda instead of a macro:
//   dispatch(dtype, [&](auto type) { using T = typename decltype(type)::type; ... });
#pragma once
#include "dtype.h"

namespace minigpt {

template <class T>
struct Type {
  using type = T;
};

template <class F>
void dispatch(DType dtype, const F& f) {
  switch (dtype) {
    case DType::f32:
      return f(Type<float>{});
    case DType::bf16:
      return f(Type<bfloat16>{});
    case DType::f16:
      return f(Type<float16>{});
    case DType::f64:
      return f(Type<double>{});
  }
}

// LayerNorm's allowed pairs (x, weight): the same type, or a 16-bit x with float weights, as under autocast.
template <class F>
void dispatch_pair(DType x, DType weight, const F& f) {
  dispatch(x, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      if (weight == DType::f32) return f(Type<T>{}, Type<float>{});
    }
    f(Type<T>{}, Type<T>{});
  });
}

// A norm's (x, residual, weight): the residual of x's type, or float where x has 16 bits and the weights are float.
template <class F>
void dispatch_residual(DType x, DType residual, DType weight, const F& f) {
  dispatch_pair(x, weight, [&](auto type, auto weight_type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2 && sizeof(typename decltype(weight_type)::type) == 4) {
      if (residual == DType::f32) return f(type, Type<float>{}, weight_type);
    }
    f(type, type, weight_type);
  });
}

// Dropout's pairs: the same type, or a 16-bit one beside float.
template <class F>
void dispatch_mixed(DType in, DType out, const F& f) {
  dispatch(in, [&](auto type) {
    using T = typename decltype(type)::type;
    if constexpr (sizeof(T) == 2) {
      if (out == DType::f32) return f(type, Type<float>{});
    } else if constexpr (sizeof(T) == 4) {
      if (out == DType::bf16) return f(type, Type<bfloat16>{});
      if (out == DType::f16) return f(type, Type<float16>{});
    }
    f(type, type);
  });
}

}  // namespace minigpt
