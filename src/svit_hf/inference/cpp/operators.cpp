// SPDX-License-Identifier: Apache-2.0
// All operators: one translation unit, since most of the time to compile it is that of PyTorch's headers.

#include <torch/library.h>

#include "attention.h"
#include "feed_forward.h"
#include "sampling.h"

TORCH_LIBRARY(svit_hf_cpp, library) {
  library.def("depthwise", depthwise);
  library.def(
      "gelu_and_normalize_(Tensor(a!) states, Tensor mean, Tensor variance, Tensor weight, Tensor bias, float eps) -> ()",
      gelu_and_normalize_);
  library.def("pack_feed_forward", pack_feed_forward);
  library.def("feed_forward", feed_forward);
  library.def("pack_attention", pack_attention);
  library.def("attention", attention);
  library.def("sample_super_tokens", sample_super_tokens);
  library.def("upsample_tokens", upsample_tokens);
}
