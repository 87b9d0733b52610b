-- Points an alias at a digest, or '@route' at a route: whole or not at all. Answers {status, revision or detail}.
-- `seen` is the task's revision for which the caller decided, '0' for no task; at another revision the answer is
-- 'changed', and nothing changes. '' stands for any revision.
local ROUTE, STACK = '@route', 100
local task, versions, stack, tasks = unpack(KEYS, 1, 4)
local action, name, field, value, who, seen, other_labels = unpack(ARGV)
local back = action == 'rollback' or action == 'rollback-route'

local made = made_before()
if made then return {'ok', made} end
if action ~= 'publish' and redis.call('EXISTS', task) == 0 then return {'no-task'} end
if seen ~= '' and seen ~= (redis.call('HGET', task, '@revision') or '0') then return {'changed'} end
if action == 'promote' and not redis.call('ZSCORE', versions, value) then return {'no-version'} end
if action == 'route' and value ~= '' then
  local route = cjson.decode(value)
  local targets = { route.shadow }
  for target in pairs(route.weights) do targets[#targets + 1] = target end
  for _, target in ipairs(targets) do
    local known = redis.call('HEXISTS', task, target) == 1 or redis.call('ZSCORE', versions, target)
    if not known then return {'no-target', target} end
  end
  value = route_text(route.weights, route.shadow)
end

local current = redis.call('HGET', task, field) or ''
if back then
  if field ~= ROUTE and current == '' then return {'no-alias'} end
  value = redis.call('LPOP', stack)
  if not value then return {'no-earlier'} end
elseif value ~= current and (current ~= '' or field == ROUTE) then
  redis.call('LPUSH', stack, current)
  redis.call('LTRIM', stack, 0, STACK - 1)
end

local row = { action = action, alias = field, digest = value, previous = current }
if field == ROUTE then row = route_row(action, value, current) end
if other_labels ~= '' then row.other_labels = other_labels end
local revision = record({unpack(KEYS, 5)}, name, who, {row})
if action == 'publish' then
  redis.call('SADD', tasks, name)
  redis.call('ZADD', versions, 'NX', revision, value)
end
if value == '' then redis.call('HDEL', task, field) else redis.call('HSET', task, field, value) end
redis.call('HSET', task, '@revision', revision)
return {'ok', revision}
