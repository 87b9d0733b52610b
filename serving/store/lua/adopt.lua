-- Records that a person confirmed what the store holds. Answers the revision.
local name, id, who = unpack(ARGV)
redis.call('SADD', KEYS[1], id)
return record({unpack(KEYS, 2)}, name, who, {{ action = 'adopt-store', alias = '', digest = '', previous = '' }})
