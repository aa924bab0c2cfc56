// Small operations of a node's ranks over their slots, the ordered sum of arrays in shared memory, and the buckets.
#include <pybind11/stl.h>
#include <sched.h>

#include <algorithm>

#include "bind/bucket_reducer.h"

namespace medmpi {
namespace {

/// Runs meet() with the lock released.
double meet(RankGroup& group, size_t bytes = 0) {
  py::gil_scoped_release nogil;
  return group.meet(static_cast<int64_t>(bytes));
}

double barrier(RankGroup& group, const std::string& operation) {
  Operation now(group, operation);
  return meet(group);
}

/// Every rank's `bytes` bytes of `mine`, to be read until the next operation but one. Returns seconds waited.
double exchange(RankGroup& group, const void* mine, size_t bytes) {
  std::memcpy(group.slot(group.index(), group.next_epoch()), mine, bytes);
  return meet(group, bytes);
}

/// y = the sum of what the ranks brought to meeting `epoch`, in rank order.
template <typename T>
void add_slots(const RankGroup& group, int64_t epoch, T* y, int64_t n) {
  std::memcpy(y, group.slot(0, epoch), static_cast<size_t>(n) * sizeof(T));
  for (int r = 1; r < group.size(); ++r) {
    const T* x = reinterpret_cast<const T*>(group.slot(r, epoch));
    for (int64_t i = 0; i < n; ++i) y[i] += x[i];
  }
}

template <typename T>
double sum_array(RankGroup& group, Tensor<T, 1> array) {
  const int64_t most = static_cast<int64_t>(group.slot_bytes() / sizeof(T));
  double waited = 0.0;
  for (int64_t at = 0; at < array.shape[0]; at += most) {
    const int64_t n = std::min(most, array.shape[0] - at);
    T* y = array.data + at;
    const int64_t epoch = group.next_epoch();
    waited += exchange(group, y, static_cast<size_t>(n) * sizeof(T));
    add_slots(group, epoch, y, n);
  }
  return waited;
}

double sum(RankGroup& group, const py::buffer& array, const std::string& operation) {
  Call call("sum");
  const std::string format = array.request(true).format;
  Operation now(group, operation);
  if (format == py::format_descriptor<float>::format()) {
    auto t = call.flat_out<float>("array", array, array.request().size);
    return sum_array<float>(group, t);
  }
  if (format == py::format_descriptor<double>::format()) {
    auto t = call.flat_out<double>("array", array, array.request().size);
    return sum_array<double>(group, t);
  }
  auto t = call.flat_out<int64_t>("array", array, array.request().size);
  return sum_array<int64_t>(group, t);
}

/// Brings an array that fits a slot to the next meeting and goes on; finish_sum of the same array waits and adds.
void start_sum(RankGroup& group, const py::object& array, const std::string& operation) {
  Call call("start_sum");
  const auto t = call.in<double, 1>("array", array);
  const auto bytes = static_cast<size_t>(t.size()) * sizeof(double);
  call.require(bytes <= group.slot_bytes(), "array does not fit a slot");
  Operation now(group, operation);
  std::memcpy(group.slot(group.index(), group.next_epoch()), t.data, bytes);
  group.arrive(static_cast<int64_t>(bytes));
}

double finish_sum(RankGroup& group, const py::object& array, const std::string& operation) {
  Call call("finish_sum");
  const auto t = call.flat_out<double>("array", array, array.cast<py::buffer>().request().size);
  Operation now(group, operation);
  double waited;
  {
    py::gil_scoped_release nogil;
    waited = group.await(t.size() * static_cast<int64_t>(sizeof(double)));
  }
  add_slots(group, group.epoch(), t.data, t.size());
  return waited;
}

double allgather(RankGroup& group, const py::buffer& mine, const py::buffer& all, const std::string& operation) {
  const py::buffer_info from = mine.request(), to = all.request(true);
  const auto bytes = static_cast<size_t>(from.size * from.itemsize);
  if (bytes > group.slot_bytes() ||
      static_cast<size_t>(to.size * to.itemsize) != bytes * static_cast<size_t>(group.size()))
    throw py::value_error("allgather: arrays have " + text(static_cast<int64_t>(bytes)) + " and " +
                          text(to.size * to.itemsize) + " bytes, which do not fit " + text(group.size()) + " ranks");
  Operation now(group, operation);
  const int64_t epoch = group.next_epoch();
  const double waited = exchange(group, from.ptr, bytes);
  for (int r = 0; r < group.size(); ++r)
    std::memcpy(static_cast<char*>(to.ptr) + static_cast<size_t>(r) * bytes, group.slot(r, epoch), bytes);
  return waited;
}

/// Sums arrays in shared memory, each rank a share of the elements; (seconds of work, seconds waited).
std::pair<double, double> sum_segments(RankGroup& group, const std::vector<uintptr_t>& addresses, int64_t n,
                                       int targets, const std::string& operation) {
  std::vector<float*> segments;
  for (uintptr_t a : addresses) segments.push_back(reinterpret_cast<float*>(a));
  if (static_cast<int>(segments.size()) != group.size() || targets < 1 || targets > group.size())
    throw py::value_error("sum_segments: segments or targets do not fit a group of " + text(group.size()));
  Operation now(group, operation);
  py::gil_scoped_release nogil;
  const int64_t start = monotonic_ns();
  double waited = group.meet(n);
  const int64_t share = (n / group.size() + 16) / 16 * 16;
  const int64_t begin = std::min(n, share * group.index()), end = std::min(n, begin + share);
  host_ops().collective->reduce(group.size(), targets, segments.data(), begin, end);
  waited += group.meet();
  return {static_cast<double>(monotonic_ns() - start) * 1e-9 - waited, waited};
}

/// Merges (count, mean[n], m2[n]) of several ranks in rank order (Chan, Golub & LeVeque 1979) and returns the count; a
/// rank without samples is skipped. Compiled once for the baseline: the same bits whatever table is in use.
template <typename Part>
double merge_parts(int ranks, int64_t n, const Part& part, double* mean, double* m2) {
  double total = 0.0;
  std::fill_n(mean, n, 0.0);
  std::fill_n(m2, n, 0.0);
  for (int r = 0; r < ranks; ++r) {
    const double* theirs = part(r);
    const double more = theirs[0];
    if (more == 0.0) continue;
    const double share = more / (total + more), cross = total * share;
    for (int64_t c = 0; c < n; ++c) {
      const double delta = theirs[1 + c] - mean[c];
      mean[c] += delta * share;
      m2[c] += theirs[1 + n + c] + delta * delta * cross;
    }
    total += more;
  }
  return total;
}

py::tuple merge_statistics(RankGroup& group, double count, const py::object& mean, const py::object& m2,
                           const py::object& out_mean, const py::object& out_m2, const std::string& operation) {
  Call call("merge_statistics");
  const auto m = call.in<double, 1>("mean", mean);
  const auto s = call.in<double, 1>("m2", m2, m.shape);
  const auto to_m = call.flat_out<double>("out_mean", out_mean, m.size());
  const auto to_s = call.flat_out<double>("out_m2", out_m2, m.size());
  const int64_t n = m.size();
  const size_t bytes = static_cast<size_t>(n) * sizeof(double);
  call.require(2 * bytes + sizeof(double) <= group.slot_bytes(), "mean has too many channels for a slot");
  Operation now(group, operation);
  const int64_t epoch = group.next_epoch();
  auto* mine = reinterpret_cast<double*>(group.slot(group.index(), epoch));
  mine[0] = count;
  std::memcpy(mine + 1, m.data, bytes);
  std::memcpy(mine + 1 + n, s.data, bytes);
  const double waited = meet(group, bytes);
  const double total = merge_parts(
      group.size(), n, [&](int r) { return reinterpret_cast<const double*>(group.slot(r, epoch)); }, to_m.data,
      to_s.data);
  return py::make_tuple(total, waited);
}

/// The same for parts that have come by another way, float64 (ranks, 1 + 2 n).
double merge_statistics_of(const py::object& parts, const py::object& out_mean, const py::object& out_m2) {
  Call call("merge_statistics_of");
  const auto p = call.in<double, 2>("parts", parts);
  const int64_t n = (p.shape[1] - 1) / 2;
  const auto to_m = call.flat_out<double>("out_mean", out_mean, n);
  const auto to_s = call.flat_out<double>("out_m2", out_m2, n);
  return merge_parts(
      static_cast<int>(p.shape[0]), n, [&](int r) { return p.data + r * p.shape[1]; }, to_m.data, to_s.data);
}

py::list lines(RankGroup& group) {
  py::list all;
  for (int i = 0; i < group.size(); ++i) {
    auto& l = group.line(i);
    py::dict d;
    d["arrived"] = l.arrived.load();
    d["operations"] = l.operations.load();
    const int64_t since = l.since.load();
    d["seconds"] = since ? static_cast<double>(monotonic_ns() - since) * 1e-9 : -1.0;
    d["leaving"] = l.state.load() == RankGroup::kLeaving;
    d["exit_code"] = l.exit_code.load();
    d["pid"] = l.pid.load();
    d["rank"] = l.rank.load();
    // the owner may be writing its name: take what is there, up to the end of the field
    char name[RankGroup::kName];
    std::memcpy(name, l.operation, sizeof name);
    name[sizeof name - 1] = '\0';
    d["operation"] =
        py::reinterpret_steal<py::str>(PyUnicode_DecodeUTF8(name, static_cast<py::ssize_t>(strlen(name)), "replace"));
    all.append(d);
  }
  return all;
}

/// True for the first rank that ends the job, which is the one to say why.
bool claim_abort(RankGroup& group, int64_t code) {
  int64_t expected = 0;
  return group.aborted().compare_exchange_strong(expected, (int64_t{1} << 32) | (code & 0xff));
}

}  // namespace

void bind_collective(py::module_& m) {
  py::class_<RankGroup>(m, "RankGroup")
      .def(py::init<py::buffer, int, int, size_t, int64_t>(), py::arg("memory"), py::arg("index"), py::arg("size"),
           py::arg("slot_bytes"), py::arg("rank"), py::keep_alive<1, 2>())
      .def_static("bytes", &RankGroup::bytes, py::arg("size"), py::arg("slot_bytes"))
      .def("set_patience", &RankGroup::set_patience, py::arg("spin"), py::arg("yield_"))
      .def(
          "enter", [](RankGroup& g, const std::string& name) { g.enter(name.data(), name.size()); }, py::arg("name"))
      .def("leave", &RankGroup::leave)
      .def("barrier", &barrier, py::arg("operation") = "barrier")
      .def("sum", &sum, py::arg("array"), py::arg("operation") = "sum")
      .def("start_sum", &start_sum, py::arg("array"), py::arg("operation") = "sum")
      .def("finish_sum", &finish_sum, py::arg("array"), py::arg("operation") = "sum")
      .def("allgather", &allgather, py::arg("mine"), py::arg("all"), py::arg("operation") = "allgather")
      .def("sum_segments", &sum_segments, py::arg("addresses"), py::arg("n"), py::arg("targets"),
           py::arg("operation") = "sum")
      .def("merge_statistics", &merge_statistics, py::arg("count"), py::arg("mean"), py::arg("m2"), py::arg("out_mean"),
           py::arg("out_m2"), py::arg("operation") = "merge statistics")
      .def("lines", &lines)
      .def(
          "set_leaving",
          [](RankGroup& g, int64_t code) {
            g.line(g.index()).exit_code.store(code);
            g.line(g.index()).state.store(RankGroup::kLeaving);
          },
          py::arg("code"))
      .def("claim_abort", &claim_abort, py::arg("code"))
      .def("aborted", [](RankGroup& g) -> py::object {
        const int64_t word = g.aborted().load();
        return word ? py::object(py::int_(word & 0xff)) : py::none();
      });
  m.def("yield_core", &sched_yield, py::call_guard<py::gil_scoped_release>());
  m.def("merge_statistics_of", &merge_statistics_of, py::arg("parts"), py::arg("out_mean"), py::arg("out_m2"));
  py::class_<BucketReducer>(m, "BucketReducer")
      .def(py::init([](RankGroup& group, const py::buffer& counters, const std::vector<uintptr_t>& addresses,
                       std::vector<int64_t> edges, int64_t chunk, int targets) {
             std::vector<float*> segments;
             for (uintptr_t a : addresses) segments.push_back(reinterpret_cast<float*>(a));
             return std::make_unique<BucketReducer>(group, counters, std::move(segments), std::move(edges), chunk,
                                                    targets);
           }),
           py::arg("group"), py::arg("counters"), py::arg("addresses"), py::arg("edges"), py::arg("chunk"),
           py::arg("targets"), py::keep_alive<1, 2>(), py::keep_alive<1, 3>())
      .def_static("counter_bytes", &BucketReducer::counter_bytes, py::arg("ranks"), py::arg("buckets"))
      .def("fill", &BucketReducer::fill, py::arg("bucket"))
      .def("poll", &BucketReducer::poll, py::call_guard<py::gil_scoped_release>())
      .def("complete", &BucketReducer::complete, py::arg("bucket"))
      .def("finish", &BucketReducer::finish, py::call_guard<py::gil_scoped_release>())
      .def("next_step", &BucketReducer::next_step);
}

}  // namespace medmpi
