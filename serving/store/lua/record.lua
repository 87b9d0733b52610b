-- What every change ends with, put before each script: the change is counted, told of, and remembered.
-- Rows say what was done; who, when and the revision are added. Answers the revision.
local function record(keys, name, who, rows)
  local HISTORY, EVENTS = 1000, 10000
  local history, events, counter = unpack(keys)
  local revision, now = redis.call('INCR', counter), redis.call('TIME')
  for _, row in ipairs(rows) do
    row.who, row.when, row.revision = who, tonumber(now[1]), revision
    redis.call('LPUSH', history, cjson.encode(row))
  end
  redis.call('LTRIM', history, 0, HISTORY - 1)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS, '*', 'task', name, 'revision', revision)
  return revision
end

-- A route as it is kept (JSON, or '' for none) as a row of history.
local function route_row(action, route, previous)
  local function decoded(text) return text ~= '' and cjson.decode(text) or {} end
  local now, before = decoded(route), decoded(previous)
  return {
    action = action, alias = '', digest = '', previous = '',
    route = now.weights or cjson.null, previous_route = before.weights or cjson.null,
    shadow = now.shadow or cjson.null, previous_shadow = before.shadow or cjson.null,
  }
end

-- A route's JSON, always the same for the same route; '' where no target is left of it.
local function route_text(weights, shadow)
  local targets, parts = {}, {}
  for target in pairs(weights) do targets[#targets + 1] = target end
  if #targets == 0 then return '' end
  table.sort(targets)
  for i, target in ipairs(targets) do parts[i] = string.format('"%s":%d', target, weights[target]) end
  local beside = shadow and string.format(',"shadow":"%s"', shadow) or ''
  return '{"weights":{' .. table.concat(parts, ',') .. '}' .. beside .. '}'
end
