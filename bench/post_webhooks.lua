-- What wrk sends to the endpoint of Stripe's webhooks: the lines of a file one after the other, each a signature and a body, between a tab.
local requests, position = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    local signature, body = line:match("([^\t]*)\t(.*)")
    requests[#requests + 1] = wrk.format("POST", nil, {
      ["Host"] = wrk.headers["Host"],
      ["Content-Type"] = "application/json; charset=utf-8",
      ["Stripe-Signature"] = signature,
    }, body)
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end
