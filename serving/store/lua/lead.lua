-- Takes, renews or drops the lease of the one that computes the placement. The server lets the lease end by its own
-- clock. Answers 1 if `holder` has the lease afterwards, or had it when it was dropped, else 0.
-- A full store refuses a script whose first write adds something, so the key is deleted first.
local action, holder, milliseconds = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('GET', KEYS[1])
if held and held ~= holder then return 0 end
if action == 'drop' then return redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], holder, 'PX', milliseconds)
return 1
