// The C functions of options.h.
#include <cstdlib>
#include <map>
#include <string>

#include "barriers.h"
#include "block.h"
#include "launches.h"
#include "observer.h"

using namespace fwm::emulator;

namespace {

std::string answer;

std::uint64_t number(const std::string& value) {
  char* end;
  const std::uint64_t parsed = std::strtoull(value.c_str(), &end, 10);
  if (value.empty() || *end) throw Error("'" + value + "' is no number");
  return parsed;
}

Order order(const std::string& value) {
  static const std::map<std::string, Order> orders = {
      {"forward", Order::forward}, {"reverse", Order::reverse}, {"random", Order::random}};
  const auto found = orders.find(value);
  if (found == orders.end()) throw Error("'" + value + "' is not forward, reverse or random");
  return found->second;
}

std::string barrier(const std::string& value) {
  const std::size_t colon = value.rfind(':');
  if (value.empty()) return value;
  if (colon == std::string::npos || colon == 0) throw Error("'" + value + "' is not FILE:LINE");
  number(value.substr(colon + 1));
  return value;
}

void set(const std::string& name, const std::string& value) {
  if (name == "order") {
    options.order = order(value);
  } else if (name == "seed") {
    options.seed = number(value);
  } else if (name == "shared_limit") {
    options.shared_limit = number(value);
  } else if (name == "fill_shared") {
    options.fill_shared = number(value) != 0;
  } else if (name == "execute") {
    options.execute = number(value) != 0;
  } else if (name == "skip") {
    options.skip = barrier(value);
  } else {
    throw Error("no such option; there are order, seed, shared_limit, fill_shared, execute, skip");
  }
}

}  // namespace

extern "C" {

const char* fwm_emulator_set(const char* name, const char* value) {
  const char* error = error_of([&] { set(name, value); });
  answer = *error ? std::string("emulator option ") + name + ": " + error : "";
  return answer.c_str();
}

std::size_t fwm_emulator_shared_limit() { return fwm::emulator::options.shared_limit; }

void fwm_emulator_reset() {
  options = Options();
  forget_barriers();
  forget_launches();
  if (observer) observer->reset();
}

const char* fwm_emulator_launches() { return (answer = list_launches()).c_str(); }

const char* fwm_emulator_barriers() { return (answer = list_barriers()).c_str(); }

std::size_t fwm_emulator_finding_count() { return observer ? observer->finding_count() : 0; }

const char* fwm_emulator_report() {
  return (answer = observer ? observer->report() : "").c_str();
}

}  // extern "C"
