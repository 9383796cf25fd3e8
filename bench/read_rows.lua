-- Sends the requests of a file in turns, so that many organizations are read. A line: path, token, organization, between tabs.
local requests, position = {}, 0

function init(arguments)
  for line in io.lines(arguments[1]) do
    local path, token, organization, prefer = line:match("([^\t]*)\t([^\t]*)\t([^\t]*)\t([^\t]*)")
    requests[#requests + 1] = wrk.format("GET", path, {
      ["Host"] = wrk.headers["Host"],
      ["Authorization"] = "Bearer " .. token,
      ["X-Organization-ID"] = organization,
      ["Prefer"] = prefer,
    })
  end
end

function request()
  position = position % #requests + 1
  return requests[position]
end
