-- Deletes a task, or one of its versions: whole or not at all. Answers {status, revision}, or {'in-use', aliases and
-- '@route' that point at a version...}.
local ROUTE = '@route'
local task, versions, stacks, tasks = unpack(KEYS, 1, 4)
local action, name, digest, force, who = unpack(ARGV)

local made = made_before()
if made then return {'ok', made} end
if redis.call('EXISTS', task) == 0 then return {'no-task'} end
if action == 'delete-version' and not redis.call('ZSCORE', versions, digest) then return {'no-version'} end

local function stack_of(field) return stacks .. ':' .. field end
local function decoded(route) return route ~= '' and cjson.decode(route) or { weights = {} } end
local function names(route, target) return route.weights[target] or route.shadow == target end

local aliases, route = {}, ''
local fields = redis.call('HGETALL', task)
for i = 1, #fields, 2 do
  if fields[i] == ROUTE then
    route = fields[i + 1]
  elseif string.sub(fields[i], 1, 1) ~= '@' then
    aliases[fields[i]] = fields[i + 1]
  end
end

if force ~= '1' then
  local answer = {'in-use'}
  for alias, value in pairs(aliases) do
    if action == 'delete' or value == digest then answer[#answer + 1] = alias end
  end
  if route ~= '' and (action == 'delete' or names(decoded(route), digest)) then answer[#answer + 1] = ROUTE end
  if #answer > 1 then return answer end
end

if action == 'delete' then
  for alias in pairs(aliases) do redis.call('DEL', stack_of(alias)) end
  redis.call('DEL', stack_of(ROUTE), task, versions)
  redis.call('SREM', tasks, name)
  local row = { action = action, alias = '', digest = '', previous = '' }
  return {'ok', record({unpack(KEYS, 5)}, name, who, {row})}
end

-- Drops what no longer stands from a field's current and earlier values, newest first, and values that repeat the one
-- before. The first value left becomes the field's current one, the others its stack.
local function settle(field, current, standing)
  local kept = {}
  local values = redis.call('LRANGE', stack_of(field), 0, -1)
  table.insert(values, 1, current)
  for _, value in ipairs(values) do
    local left = standing(value)
    if left and left ~= kept[#kept] then kept[#kept + 1] = left end
  end
  redis.call('DEL', stack_of(field))
  for i = 2, #kept do redis.call('RPUSH', stack_of(field), kept[i]) end
  local now = kept[1] or ''
  if now == '' then redis.call('HDEL', task, field) else redis.call('HSET', task, field, now) end
  return now
end

redis.call('ZREM', versions, digest)
local rows = {{ action = action, alias = '', digest = digest, previous = '' }}
for alias, current in pairs(aliases) do
  local now = settle(alias, current, function(value) return redis.call('ZSCORE', versions, value) and value end)
  if now ~= current then
    rows[#rows + 1] = { action = 'fall-back', alias = alias, digest = now, previous = current }
  end
end
local function stands(target)
  return redis.call('HEXISTS', task, target) == 1 or redis.call('ZSCORE', versions, target)
end
local now = settle(ROUTE, route, function(text)
  local left = decoded(text)
  for target in pairs(left.weights) do
    if not stands(target) then left.weights[target] = nil end
  end
  if left.shadow and not stands(left.shadow) then left.shadow = nil end
  return route_text(left.weights, left.shadow)
end)
if now ~= route then rows[#rows + 1] = route_row('fall-back', now, route) end

local revision = record({unpack(KEYS, 5)}, name, who, rows)
redis.call('HSET', task, '@revision', revision)
return {'ok', revision}
