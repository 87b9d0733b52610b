-- Adds, replaces or drops the record of an API key. Answers {status, revision}.
local action, name, id, text, who = unpack(ARGV)
if action == 'put-key' then
  redis.call('HSET', KEYS[1], id, text)
elseif redis.call('HDEL', KEYS[1], id) == 0 then
  return {'no-key'}
end
local row = { action = action, alias = '', digest = '', previous = '', key = id }
return {'ok', record({unpack(KEYS, 2)}, name, who, {row})}
