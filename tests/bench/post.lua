-- One request, built once, so that wrk runs no Lua while it measures.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"

function done(summary, latency, requests)
  local failed = summary.errors
  print(string.format(
    '@{"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "p999": %.3f, "longest": %.3f, "failed": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
    latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3, latency.max / 1e3,
    failed.status + failed.connect + failed.read + failed.write + failed.timeout))
end
