-- Steps of writing a delta. KEYS[1] is the delta's hash, which exists once the delta is complete; the other keys are its
-- chunks. Until then chunks expire, so an upload that died leaves nothing behind. No step makes a chunk of a complete
-- delta expire, and none deletes one. 'complete' answers how many chunks are missing; only if none is, it completes.
local delta, action = KEYS[1], ARGV[1]
local complete = redis.call('EXISTS', delta) == 1

if action == 'write' then
  local data, seconds = ARGV[2], ARGV[3]
  if complete then redis.call('SET', KEYS[2], data) else redis.call('SET', KEYS[2], data, 'EX', seconds) end
elseif action == 'keep' and not complete then
  for i = 2, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[2]) end
elseif action == 'abandon' and not complete then
  for i = 2, #KEYS do redis.call('DEL', KEYS[i]) end
elseif action == 'complete' then
  local missing = 0
  for i = 2, #KEYS do missing = missing + 1 - redis.call('EXISTS', KEYS[i]) end
  if missing > 0 then return missing end
  -- HSET comes first: a store that the chunks have filled refuses it, as it would refuse to make the delta a version
  redis.call('HSET', delta, 'manifest', ARGV[2], 'size', ARGV[3], 'count', #KEYS - 1)
  for i = 2, #KEYS do redis.call('PERSIST', KEYS[i]) end
end
return 0
