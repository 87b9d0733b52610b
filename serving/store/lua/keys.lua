-- Adds, replaces or drops the record of an API key, or only records that there was a key. Answers {status, revision}.
local keys, locked = unpack(KEYS, 1, 2)
local action, name, id, text, who = unpack(ARGV)
local made = made_before()
if made then return {'ok', made} end
if action == 'lock' and redis.call('EXISTS', locked) == 1 then
  return {'ok', tonumber(redis.call('GET', KEYS[5]) or 0)}
end
if action == 'put-key' then
  redis.call('HSET', keys, id, text)
elseif action == 'drop-key' and redis.call('HDEL', keys, id) == 0 then
  return {'no-key'}
end
redis.call('SET', locked, 1)
local row = { action = action, alias = '', digest = '', previous = '', key = id }
return {'ok', record({unpack(KEYS, 3)}, name, who, {row})}
