-- Said once at the end, for the program that started wrk. Times in microseconds.
function done(summary, latency)
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    io.write(string.format(
        '{"requests":%d,"micros":%d,"p50":%d,"p99":%d,"p999":%d,"errors":%d}\n',
        summary.requests, summary.duration,
        latency:percentile(50), latency:percentile(99), latency:percentile(99.9), failed))
end
