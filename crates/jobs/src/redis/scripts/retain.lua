-- Forgets jobs that are over, those first that were over first. ARGV: older than ('' for any age), most jobs, most bytes
-- of artifacts ('' for no bound), most jobs in one go.
local old, jobs_max, bytes_max, most = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local finished = redis.call('ZCARD', Q .. 'over')
local bytes = tonumber(redis.call('HGET', Q .. 'meta', 'artifact_bytes') or 0)
-- What is still to be told stays, and does not keep what lies behind it.
local owed = math.min(redis.call('ZCARD', Q .. 'calls'), 5000)
local over = redis.call('ZRANGE', Q .. 'over', 0, most + owed, 'WITHSCORES')
local artifacts, removed, more = {}, 0, '0'
for place = 1, #over, 2 do
    local id, at = sitter(over[place]), tonumber(over[place + 1])
    local goes = (old and at < old) or (jobs_max and finished > jobs_max) or (bytes_max and bytes > bytes_max)
    if not goes then break end
    if removed == most then
        more = '1'
        break
    end
    if not redis.call('ZSCORE', Q .. 'calls', id) then
        local key = Q .. 'job:' .. id
        local job = redis.call('HMGET', key, 's', 'p', 'n', 'o', 'k', 'i', 'f', 'b')
        local state, class = job[1], job[2]
        for artifact in string.gmatch(job[7] or '', '%S+') do
            artifacts[#artifacts + 1] = artifact
            redis.call('HDEL', Q .. 'artifacts', artifact)
            redis.call('HINCRBY', Q .. 'meta', 'artifacts', -1)
        end
        if tonumber(job[8] or 0) > 0 then
            bytes = bytes - tonumber(job[8])
            redis.call('HINCRBY', Q .. 'meta', 'artifact_bytes', '-' .. job[8])
        end
        if job[5] then redis.call('HDEL', Q .. 'keys', job[5]) end
        for input in string.gmatch(job[6] or '', '%S+') do
            if redis.call('HINCRBY', Q .. 'inputs', input, -1) <= 0 then redis.call('HDEL', Q .. 'inputs', input) end
        end
        leave(id, state, class, job[3])
        list('ZREM', id, state, job[4])
        tally(state, class, -1)
        redis.call('DEL', key, Q .. 'log:' .. id, Q .. 'preview:' .. id)
        finished = finished - 1
        removed = removed + 1
    end
end
return { int(removed), artifacts, more }
