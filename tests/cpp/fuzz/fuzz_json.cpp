// Any bytes: parse refuses them with json::Error, or what it accepts survives dump and parse.
#include <cstdlib>

#include "dpt/io/json.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  namespace json = dpt::json;
  json::Value value;
  try {
    value = json::parse({reinterpret_cast<const char*>(data), size});
  } catch (const json::Error&) {
    return 0;
  }
  for (const int indent : {0, 2}) {
    if (!(json::parse(json::dump(value, indent)) == value)) std::abort();
  }
  return 0;
}
