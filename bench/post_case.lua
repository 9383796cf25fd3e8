-- What wrk sends when it writes: one row, and no row back.
wrk.method = "POST"
wrk.body = '{"title": "A case of the benchmark"}'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Prefer"] = "return=minimal"
