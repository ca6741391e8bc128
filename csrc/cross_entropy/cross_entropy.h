// Cross-entropy of logits against target ids, with its gradient made in the same pass: what a kernel is handed. No torch.
//   z = sum over v of e^(x[v] - max)     loss(row) = log z - (x[target] - max)
//   loss = sum over the rows that count of loss(row) / how many count          (nan where none counts)
//   dx[v] = (e^(x[v] - max) / z - [v == target]) / how many count              (0 in a row that does not count)
#pragma once
#include <cstdint>

#include "../common/cuda_stream.h"
#include "../common/dtype.h"

namespace minigpt {

struct CrossEntropyForwardParams {
  int64_t rows, V;
  DType dtype;
  const void* logits;   // (rows, V), contiguous
  const void* targets;  // (rows,), int64 or int32; a row whose target is ignore_index does not count
  bool targets_64;
  int64_t ignore_index;
  void* loss;      // one number of the accumulation type, as are:
  void* row_loss;  // (rows,), scratch
  void* share;     // 1 / how many rows count, scratch
  void* dlogits;   // (rows, V), other memory than the logits; null where no gradient is wanted
};

struct CrossEntropyBackwardParams {
  int64_t n;
  DType dtype;
  const void* dlogits;  // (n,), of the forward
  const void* dloss;    // one number of the accumulation type
  void* scaled;         // (n,): dlogits * dloss
};

void cross_entropy_forward_cpu(const CrossEntropyForwardParams& p);
void cross_entropy_backward_cpu(const CrossEntropyBackwardParams& p);
void cross_entropy_forward_cuda(const CrossEntropyForwardParams& p, CudaStream stream);
void cross_entropy_backward_cuda(const CrossEntropyBackwardParams& p, CudaStream stream);

}  // namespace minigpt
