// A thread that ends this process when the launch cannot go on: it needs neither the interpreter nor MPI.
#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>

#include "bind/call.h"

namespace medmpi {
namespace {

using Clock = std::chrono::steady_clock;
const char* const kRankVariables[] = {"PMI_RANK=", "PMIX_RANK=", "OMPI_COMM_WORLD_RANK=", "SLURM_PROCID="};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string decimals(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

/// The state letter and the parent of a process; false where it is gone.
bool look_at(const std::string& pid, char* state, int* parent) {
  std::ifstream file("/proc/" + pid + "/stat");
  std::string line;
  if (!std::getline(file, line)) return false;
  const size_t name_end = line.rfind(')');  // the name may hold anything
  return name_end != std::string::npos && std::sscanf(line.c_str() + name_end + 1, " %c %d", state, parent) == 2;
}

/// The rank that a launcher gave a process; empty where it is no rank.
std::string rank_of(const std::string& pid) {
  std::ifstream file("/proc/" + pid + "/environ", std::ios::binary);
  std::string word;
  while (std::getline(file, word, '\0')) {
    for (const char* name : kRankVariables)
      if (word.compare(0, std::strlen(name), name) == 0) return word.substr(std::strlen(name));
  }
  return {};
}

/// Watches the ranks that one launcher process started on this machine, this one among them, until it is told to end.
/// Without that it goes on when the interpreter has gone, until the process has.
class Vigil {
 public:
  Vigil(const std::string& what, double allowed, double longest, int code)
      : state_(std::make_shared<State>(what, allowed, longest, code)) {
    std::thread([state = state_] { state->watch(); }).detach();
  }

  void end() {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    state_->over = true;
    state_->changed.notify_all();
  }

 private:
  struct State {
    std::string what;
    double allowed, longest;
    int code;
    bool over = false;
    std::mutex mutex;
    std::condition_variable changed;
    std::map<std::string, double> stopped;  // seconds for which processes were seen to be stopped

    State(const std::string& w, double a, double l, int c) : what(w), allowed(a), longest(l), code(c) {}

    void watch() {
      double waited = 0;
      auto last = Clock::now();
      std::unique_lock<std::mutex> lock(mutex);
      while (!changed.wait_for(lock, std::chrono::milliseconds(200), [this] { return over; })) {
        // not more than a bit at a time: this process may have been stopped as well, and go on before the others
        const double passed = std::min(seconds_since(last), 0.5);
        last = Clock::now();
        waited += passed;
        std::string problem = stopped_rank(passed);
        if (problem.empty() && waited > longest)
          problem = what + " has taken " + decimals(waited) + " s: a rank has not arrived, on this machine or another";
        if (!problem.empty()) give_up(problem);
      }
    }

    /// What to say of a rank that has been stopped for too long; empty where there is none.
    std::string stopped_rank(double passed) {
      DIR* folder = opendir("/proc");
      if (!folder) return {};
      std::string found;
      const int parent = getppid();
      while (const dirent* entry = readdir(folder)) {
        const std::string pid = entry->d_name;
        char letter = 0;
        int its_parent = 0;
        if (pid.find_first_not_of("0123456789") != std::string::npos || !look_at(pid, &letter, &its_parent)) continue;
        if (its_parent != parent || (letter != 'T' && letter != 't')) {
          stopped.erase(pid);
          continue;
        }
        const double waited = stopped[pid] += passed;
        const std::string rank = waited > allowed ? rank_of(pid) : "";
        if (!rank.empty()) {
          char host[256] = "";
          gethostname(host, sizeof host - 1);
          found = what + ": rank " + rank + " (process " + pid + " on " + host + ") has been stopped by a signal for " +
                  decimals(waited) + " s, more than the " + decimals(allowed) + " s allowed";
          break;
        }
      }
      closedir(folder);
      return found;
    }

    [[noreturn]] void give_up(const std::string& problem) const {
      std::string rank = rank_of("self");
      const std::string line = "[rank " + (rank.empty() ? "0" : rank) + "] watchdog: " + problem + "\n";
      const ssize_t written = write(2, line.data(), line.size());
      static_cast<void>(written);
      usleep(200'000);  // the launcher may forget what it has not read when a rank ends
      _exit(code);
    }
  };

  std::shared_ptr<State> state_;
};

}  // namespace

void bind_vigil(py::module_& m) {
  py::class_<Vigil>(m, "Vigil")
      .def(py::init<const std::string&, double, double, int>(), py::arg("what"), py::arg("allowed"), py::arg("longest"),
           py::arg("code"))
      .def("end", &Vigil::end);
}

}  // namespace medmpi
