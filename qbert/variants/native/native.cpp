// The functions that Python calls (encoder.py). None throws: a null pointer or false means failure.
//
// It is compiled with a kernel's file included before it and QBERT_KERNEL naming the struct in that file (compiler.py).
//
// All else is hidden: the libraries of two kernels may be loaded in one process, and what templates hold in static variables
// would be shared among them by its name.
#include "rates.h"

#pragma GCC visibility push(default)
extern "C" {

// What compiled this library.
#if defined(__clang__)
const char* qbert_compiler() { return __VERSION__; }
#else
const char* qbert_compiler() { return "GCC " __VERSION__; }
#endif

// The instruction sets that are used, and whether the system lets this process use them.
const char* qbert_instructions() { return qbert::Kernel::kInstructions; }
bool qbert_permitted() { return qbert::Kernel::permitted(); }

// The weights of the new encoder are at `mapped`, `size` bytes that qbert_weights told, or if that is null to be set.
void* qbert_new(const qbert::Geometry* geometry, const void* mapped, std::int64_t size) try {
  return new qbert::Encoder(*geometry, mapped, std::size_t(size));
} catch (...) {
  return nullptr;
}

void qbert_delete(void* encoder) { delete static_cast<qbert::Encoder*>(encoder); }

bool qbert_set_embeddings(void* encoder, const qbert::EmbeddingTensors* tensors) try {
  static_cast<qbert::Encoder*>(encoder)->set_embeddings(tensors);
  return true;
} catch (...) {
  return false;
}

bool qbert_add_layer(void* encoder, const qbert::LayerTensors* tensors) try {
  static_cast<qbert::Encoder*>(encoder)->add_layer(tensors);
  return true;
} catch (...) {
  return false;
}

bool qbert_set_head(void* encoder, const qbert::HeadTensors* tensors) try {
  static_cast<qbert::Encoder*>(encoder)->set_head(tensors);
  return static_cast<qbert::Encoder*>(encoder)->weights().all_taken();
} catch (...) {
  return false;
}

// Tell where a part of the weights is that were set, and its bytes; false where there is no such part.
bool qbert_weights(const void* encoder, std::int64_t number, const void** start, std::int64_t* size) {
  const auto& pieces = static_cast<const qbert::Encoder*>(encoder)->weights().pieces();
  if (number < 0 || number >= std::int64_t(pieces.size())) return false;
  *start = pieces[number].start, *size = std::int64_t(pieces[number].size);
  return true;
}

bool qbert_keep(void* encoder, std::int64_t layer, std::int64_t product, bool keeps) {
  return static_cast<qbert::Encoder*>(encoder)->keep(layer, product, keeps);
}

std::int64_t qbert_register_loop(int precision, std::int64_t repeats) { return qbert::in_registers(precision, repeats); }

std::int64_t qbert_read_bytes(const void* bytes, std::int64_t count) {
  return qbert::read(static_cast<const unsigned char*>(bytes), count);
}

void* qbert_product_new(std::int64_t tokens, std::int64_t inputs, std::int64_t outputs) try {
  return new qbert::HotProduct(int(tokens), int(inputs), int(outputs));
} catch (...) {
  return nullptr;
}

void qbert_product_run(const void* product) { static_cast<const qbert::HotProduct*>(product)->run(); }
void qbert_product_delete(void* product) { delete static_cast<qbert::HotProduct*>(product); }

// 1: the logits are written; 0: the encoder does not accept these texts; -1: there is not enough memory.
int qbert_run(void* encoder, const std::int64_t* ids, const std::int64_t* types, const std::int64_t* lengths,
              std::int64_t texts, float* logits) try {
  auto& model = *static_cast<qbert::Encoder*>(encoder);
  if (!model.accepts(ids, types, lengths, texts)) return 0;
  model.run(ids, types, lengths, int(texts), logits);
  return 1;
} catch (...) {
  return -1;
}
}
#pragma GCC visibility pop
