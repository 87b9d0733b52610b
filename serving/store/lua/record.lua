-- This file is put in front of each script.

-- The revision of this very change, where it was made already and its answer was lost: then the client sends it again.
-- The last key is the change's own, see `Connection.record_keys`.
local function made_before()
  local revision = redis.call('GET', KEYS[#KEYS])
  return revision and tonumber(revision)
end

-- Every change ends with this: it counts the change, marks it, announces it in the stream, and adds its rows to the
-- history. A row says what was done; author, time and revision are added to it. A change's mark depends on the mark
-- before and on the time, so it tells the same revision of two stores apart. Answers the revision.
local function record(keys, name, who, rows)
  local HISTORY, EVENTS, MARKS, SENT_AGAIN_SECONDS = 1000, 10000, 1000, 600
  local history, events, counter, marks, made = unpack(keys)
  local revision, now = redis.call('INCR', counter), redis.call('TIME')
  local before = redis.call('HGET', marks, revision - 1) or ''
  local mark = string.sub(redis.sha1hex(table.concat({before, revision, now[1], now[2], name, who}, ' ')), 1, 16)
  redis.call('HSET', marks, revision, mark)
  redis.call('HSETNX', marks, 'epoch', mark)
  redis.call('HDEL', marks, revision - MARKS)
  for _, row in ipairs(rows) do
    row.who, row.when, row.revision = who, tonumber(now[1]), revision
    redis.call('LPUSH', history, cjson.encode(row))
  end
  redis.call('LTRIM', history, 0, HISTORY - 1)
  redis.call('XADD', events, 'MAXLEN', '~', EVENTS, '*', 'task', name, 'revision', revision)
  redis.call('SET', made, revision, 'EX', SENT_AGAIN_SECONDS)
  return revision
end

-- The row of history for a change of route. `route` and `previous` are JSON, or '' for no route.
local function route_row(action, route, previous)
  local function decoded(text) return text ~= '' and cjson.decode(text) or {} end
  local now, before = decoded(route), decoded(previous)
  return {
    action = action, alias = '', digest = '', previous = '',
    route = now.weights or cjson.null, previous_route = before.weights or cjson.null,
    shadow = now.shadow or cjson.null, previous_shadow = before.shadow or cjson.null,
  }
end

-- A route as JSON, with its targets sorted so that equal routes have equal texts; '' for a route without targets.
local function route_text(weights, shadow)
  local targets, parts = {}, {}
  for target in pairs(weights) do targets[#targets + 1] = target end
  if #targets == 0 then return '' end
  table.sort(targets)
  for i, target in ipairs(targets) do parts[i] = string.format('"%s":%d', target, weights[target]) end
  local beside = shadow and string.format(',"shadow":"%s"', shadow) or ''
  return '{"weights":{' .. table.concat(parts, ',') .. '}' .. beside .. '}'
end
