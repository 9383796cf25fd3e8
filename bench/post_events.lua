-- What wrk sends to POST /v1/events. Arguments: events a request, and a text that no other run begins its ids with; with a third
-- argument, that many requests are sent again and again.
local events, run, repeated, position = 1, "", nil, 0

function init(arguments)
  events, run, repeated = tonumber(arguments[1]), arguments[2], tonumber(arguments[3])
end

local function event(id)
  return '{"id":"' .. id .. '","event":"api.request","quantity":1,"dimensions":{"endpoint":"/v1/answers","model":"large","status_code":200}}'
end

function request()
  position = position + 1
  local number = repeated and position % repeated or position
  local body = {}
  for n = 1, events do
    body[n] = event(run .. "-" .. number .. "-" .. n)
  end
  return wrk.format("POST", nil, nil, events == 1 and body[1] or "[" .. table.concat(body, ",") .. "]")
end
