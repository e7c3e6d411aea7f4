// Runs int8-native's library without Python: reads a case that tools/native_cases.py wrote, prints the logits of each text.
//
// It is compiled together with native.cpp, for a processor that this machine may only emulate. A case is numbers of 64 bits
// and the contents of tensors: the geometry, then each tensor as its size in bytes and its contents, in the order in which
// Python passes them, of no bytes where Python passes a null pointer; then texts, each as a number of tokens, their ids, whether types follow, and those.
#include <cstdio>
#include <fstream>

#include "native.cpp"

namespace {

std::int64_t number(std::istream& file) {
  std::int64_t value = 0;
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

template <class Value>
std::vector<Value> values(std::istream& file, std::int64_t count) {
  std::vector<Value> result(count);
  file.read(reinterpret_cast<char*>(result.data()), std::streamsize(count * sizeof(Value)));
  return result;
}

// The next tensors, as `set` takes them.
template <class Tensors>
bool set(bool (*setter)(void*, const Tensors*), void* encoder, std::istream& file) {
  const std::int64_t count = number(file);
  std::vector<std::vector<float>> kept;
  std::vector<const void*> pointers;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t bytes = number(file);
    kept.emplace_back((bytes + 3) / 4);
    file.read(reinterpret_cast<char*>(kept.back().data()), bytes);
    pointers.push_back(bytes ? kept.back().data() : nullptr);
  }
  return setter(encoder, reinterpret_cast<const Tensors*>(pointers.data()));
}

}  // namespace

int main(int, char** arguments) {
  std::ifstream file(arguments[1], std::ios::binary);
  qbert::Geometry geometry;
  file.read(reinterpret_cast<char*>(&geometry), sizeof geometry);
  void* encoder = qbert_new(&geometry, nullptr, 0);
  bool made = encoder && set(qbert_set_embeddings, encoder, file);
  for (std::int64_t layer = 0; made && layer < geometry.layers; ++layer) made = set(qbert_add_layer, encoder, file);
  if (!made || !set(qbert_set_head, encoder, file)) return 1;
  std::vector<std::int64_t> ids, types, lengths;
  while (const std::int64_t tokens = number(file)) {
    const auto own_ids = values<std::int64_t>(file, tokens), own_types = values<std::int64_t>(file, number(file) ? tokens : 0);
    ids.insert(ids.end(), own_ids.begin(), own_ids.end()), types.insert(types.end(), own_types.begin(), own_types.end());
    lengths.push_back(tokens);
  }
  const std::int64_t texts = std::int64_t(lengths.size()), at_once = number(file) ? texts : 1;
  const std::int64_t *next_ids = ids.data(), *next_types = types.empty() ? nullptr : types.data();
  for (std::int64_t text = 0; text < texts; text += at_once) {
    std::vector<float> logits(at_once * geometry.labels);
    if (qbert_run(encoder, next_ids, next_types, &lengths[text], at_once, logits.data()) != 1) return 2;
    next_ids += lengths[text], next_types += next_types ? lengths[text] : 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
      std::printf("%.9g%c", logits[i], (i + 1) % geometry.labels ? ' ' : '\n');
    }
  }
  qbert_delete(encoder);
}
