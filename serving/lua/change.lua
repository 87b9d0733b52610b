-- One change of one task: all of it, or nothing. Answers {status, revision}.
local task, versions, stack, history, tasks, events, counter = unpack(KEYS)
local action, name, alias, digest, who = unpack(ARGV)
local STACK, HISTORY, EVENTS = 100, 1000, 10000

local known = redis.call('EXISTS', task) == 1
if action ~= 'publish' and not known then return {'no-task'} end
if action == 'promote' and not redis.call('ZSCORE', versions, digest) then return {'no-version'} end

local current = alias ~= '' and redis.call('HGET', task, alias) or nil
if action == 'rollback' then
  if not current then return {'no-alias'} end
  digest = redis.call('LPOP', stack)
  if not digest then return {'no-earlier'} end
end

local revision = redis.call('INCR', counter)
if action == 'delete' then
  for _, field in ipairs(redis.call('HKEYS', task)) do
    redis.call('DEL', string.gsub(task, ':task:', ':stack:', 1) .. ':' .. field)
  end
  redis.call('DEL', task, versions)
  redis.call('SREM', tasks, name)
else
  if action ~= 'rollback' and current and current ~= digest then
    redis.call('LPUSH', stack, current)
    redis.call('LTRIM', stack, 0, STACK - 1)
  end
  if action == 'publish' then
    redis.call('SADD', tasks, name)
    redis.call('ZADD', versions, 'NX', revision, digest)
  end
  redis.call('HSET', task, alias, digest, '@revision', revision)
end

local now = redis.call('TIME')
redis.call('LPUSH', history, cjson.encode({
  action = action, alias = alias, digest = digest, previous = current or '',
  who = who, when = tonumber(now[1]), revision = revision,
}))
redis.call('LTRIM', history, 0, HISTORY - 1)
redis.call('XADD', events, 'MAXLEN', '~', EVENTS, '*', 'task', name, 'revision', revision)
return {'ok', revision}
